"""The models that were loaded by hand, so that the next start of the node serves them again.

Owns home/models.json: written beside its place and renamed. A file that cannot be read is put aside, not overwritten: it was
somebody's list.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.errors import StorageError
from agentmesh.inference.serving_types import MAX_SERVED, LoadRequest

_log = logging.getLogger(__name__)

FILE_NAME: Final = "models.json"
MAX_FILE_BYTES: Final = 1024 * 1024


class _Entry(msgspec.Struct, frozen=True):
    id: str
    request: LoadRequest


class _Content(msgspec.Struct, frozen=True):
    version: int
    models: tuple[_Entry, ...]


class Remembered:
    """The remembered loads by id, in the order in which they came. Read once; each change is written at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_id: dict[str, LoadRequest] = {}

    def load(self) -> list[LoadRequest]:
        """What the last node remembered. A damaged file counts as none and is kept under another name."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            content = msgspec.json.decode(data, type=_Content)
            self._by_id = {entry.id: entry.request for entry in content.models[:MAX_SERVED]}
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            self._put_aside(error)
            return []
        return list(self._by_id.values())

    def remember(self, model_id: str, request: LoadRequest) -> None:
        """Raises: StorageError: the disk does not take it; the model is served all the same."""
        if self._by_id.get(model_id) != request:
            self._by_id.pop(model_id, None)
            self._by_id[model_id] = request
            self._write()

    def forget(self, name: str) -> bool:
        """Forget a model by its id or by what the user wrote for it; whether there was one. Raises: StorageError."""
        wanted = name.lower()
        ids = [key for key, request in self._by_id.items() if wanted in (key.lower(), request.model.lower())]
        for key in ids:
            del self._by_id[key]
        if ids:
            self._write()
        return bool(ids)

    def _write(self) -> None:
        entries = tuple(_Entry(key, request) for key, request in self._by_id.items())[-MAX_SERVED:]
        beside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            beside.write_bytes(msgspec.json.format(msgspec.json.encode(_Content(1, entries)), indent=2) + b"\n")
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise StorageError(
                f"{self._path} could not be written: {error.strerror}. The change does not outlast this node."
            ) from error

    def _put_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        _log.warning("%s cannot be used (%s); it is kept as %s", self._path, error, aside.name)
        try:
            self._path.replace(aside)
        except OSError as failure:
            _log.warning("%s could not be put aside: %s", self._path, failure)
