"""Where models live and how the hub is reached, from the environment variables that every Hugging Face tool honours.

Owns the variables: HF_HOME, HF_HUB_CACHE (HUGGINGFACE_HUB_CACHE), HF_TOKEN (HUGGING_FACE_HUB_TOKEN), HF_TOKEN_PATH, HF_ENDPOINT,
HF_HUB_OFFLINE (TRANSFORMERS_OFFLINE), HF_HUB_DISABLE_IMPLICIT_TOKEN, XDG_CACHE_HOME. Read when used, not when imported; huggingface_hub reads them once at import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from agentmesh.core.errors import InvalidInput

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
MAX_TOKEN_BYTES: Final = 4096


class HubSettings(msgspec.Struct, frozen=True):
    """The cache folder, the hub's address and the user's token."""

    cache: Path
    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    offline: bool = False

    @classmethod
    def from_environment(cls) -> HubSettings:
        """The settings of this process's environment.

        Raises:
            InvalidInput: HF_ENDPOINT is no address.
        """
        home = _path("HF_HOME") or (_path("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
        cache = _path("HF_HUB_CACHE") or _path("HUGGINGFACE_HUB_CACHE") or home / "hub"
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise InvalidInput(f"HF_ENDPOINT is '{endpoint}'; it must be an address such as {DEFAULT_ENDPOINT}.")
        offline = _is_on("HF_HUB_OFFLINE") or _is_on("TRANSFORMERS_OFFLINE")
        return cls(cache, endpoint, _token(home), offline)


def _path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value).expanduser().absolute() if value else None


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _token(home: Path) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return value
    if _is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    try:
        with (_path("HF_TOKEN_PATH") or home / "token").open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
