"""What a user may write for a model: a catalog name, `org/repo/file.gguf`, `org/repo[:QUANT]`, a Hugging Face URL, or a path.

Owns the reading of references. Whether a name is in the catalog, or a file on the disk, is for others to find out.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.model_files import is_gguf, is_safe_path

MAX_REFERENCE_CHARS: Final = 2048
HUB_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
DEFAULT_REVISION: Final = "main"

# What the hub allows (huggingface_hub, validate_repo_id): letters, digits and . _ -, no two dots or dashes in a row.
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9]|[._-](?![.-])|[-.](?=_)){0,94}[A-Za-z0-9_]?"
_REPO: Final = re.compile(rf"{_NAME}/{_NAME}")
_QUANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VIEWS: Final = ("resolve", "blob", "raw")
_REPO_PIECES: Final = 2


class CatalogName(msgspec.Struct, frozen=True, tag="name"):
    """A name to look up in the catalog."""

    name: str


class HubFile(msgspec.Struct, frozen=True, tag="file"):
    """One file of a repository."""

    repo: str
    path: str
    revision: str = DEFAULT_REVISION


class HubRepo(msgspec.Struct, frozen=True, tag="repo"):
    """A repository, and a quantisation or none."""

    repo: str
    quant: str = ""
    revision: str = DEFAULT_REVISION


class LocalFile(msgspec.Struct, frozen=True, tag="path"):
    """A path as it was written."""

    path: str


Reference: TypeAlias = CatalogName | HubFile | HubRepo | LocalFile


def parse_reference(text: str, endpoint: str = "") -> Reference:
    """What `text` refers to. `endpoint` is the hub's own address when it is not the usual one.

    Raises:
        InvalidInput: it is none of the forms, or a file name in it leads out of its folder.
    """
    text = text.strip()
    if not text or len(text) > MAX_REFERENCE_CHARS or any(ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        raise InvalidInput(
            "Name a model: a catalog name, org/repo/file.gguf, org/repo:QUANT, a Hugging Face URL, or a path."
        )
    if "://" in text:
        return _url(text, endpoint)
    for host in HUB_HOSTS:
        if text.lower().startswith(f"{host}/"):
            return _hub(text[len(host) + 1 :], text)
    if text.startswith(("/", "./", "../", "~")) or "\\" in text or (is_gguf(text) and text.count("/") < _REPO_PIECES):
        return LocalFile(text)
    if "/" in text:
        return _hub(text, text)
    return CatalogName(text)


def is_repo(text: str) -> bool:
    """Whether `text` is the name of a repository: organisation/name."""
    return _REPO.fullmatch(text) is not None


def _hub(text: str, whole: str) -> HubFile | HubRepo:
    if is_gguf(text) and text.count("/") >= _REPO_PIECES:
        organisation, name, path = text.split("/", _REPO_PIECES)
        return _checked_file(f"{organisation}/{name}", path, DEFAULT_REVISION, whole)
    repo, colon, quant = text.partition(":")
    if not is_repo(repo) or (colon and not _QUANT.fullmatch(quant)):
        raise InvalidInput(
            f"'{whole}' is no model: write org/repo, org/repo:QUANT or org/repo/file.gguf; a path begins with ./ or /."
        )
    return HubRepo(repo, quant.upper())


def _url(text: str, endpoint: str) -> HubFile | HubRepo:
    try:
        url = urlsplit(text)
        host, base = url.hostname or "", urlsplit(endpoint)
    except ValueError:
        raise InvalidInput(f"'{text}' is no address.") from None
    own = bool(endpoint) and (url.scheme, url.netloc) == (base.scheme, base.netloc)
    if not own and (url.scheme not in ("http", "https") or host not in HUB_HOSTS):
        raise InvalidInput(f"'{text}' is not on Hugging Face. Download the file and give its path.")
    pieces = [unquote(piece) for piece in url.path.strip("/").split("/")]
    repo = "/".join(pieces[:_REPO_PIECES])
    if not is_repo(repo):
        raise InvalidInput(f"'{text}' names no repository.")
    rest = pieces[_REPO_PIECES:]
    if len(rest) >= 3 and rest[0] in _VIEWS:
        return _checked_file(repo, "/".join(rest[2:]), rest[1], text)
    if rest and rest[0] != "tree":
        raise InvalidInput(f"'{text}' is no model's file; its address has /resolve/ or /blob/ in it.")
    return HubRepo(repo, revision=_revision(rest[1], text) if len(rest) > 1 else DEFAULT_REVISION)


def _checked_file(repo: str, path: str, revision: str, whole: str) -> HubFile:
    if not is_repo(repo):
        raise InvalidInput(f"'{whole}' names no repository.")
    if not is_safe_path(path):
        raise InvalidInput(f"'{whole}' names a file outside of its repository.")
    if not is_gguf(path):
        raise InvalidInput(f"'{whole}' is no GGUF file.")
    return HubFile(repo, path, _revision(revision, whole))


def _revision(revision: str, whole: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise InvalidInput(f"'{whole}' names no revision.")
    return revision
