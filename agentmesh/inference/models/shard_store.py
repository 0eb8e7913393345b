"""The shards that a home keeps: home/shards/<key>/<model id>.gguf with a record beside it, found again by what they were made of.

A key is the hash of the model's content (the SHA-256 of every part) and of the experts that are kept, so the same request finds the same
file, and a changed model or plan another. Writing is deterministic: two nodes that hold the model make the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.control.lock import FileLock
from agentmesh.core.errors import StorageError
from agentmesh.core.paths import Home
from agentmesh.inference.logic.expert_tensors import ExpertModel
from agentmesh.inference.logic.model_files import model_id
from agentmesh.inference.logic.moe import Kept
from agentmesh.inference.models.download import FreeBytes
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.shard import (
    PARTIAL_SUFFIX,
    LocalParts,
    ShardFile,
    ShardProgress,
    SplitModel,
    layout_of,
    write_shard,
)

FORMAT: Final = 1  # of the shards' files; another number, other keys
KEY_CHARS: Final = 32
RECORD: Final = "shard.json"
MAX_RECORD_BYTES: Final = 16 * 1024 * 1024  # 100 layers of 1,024 experts take 500 kB
MAX_SHARDS: Final = 4096  # looked at in one home
LOCK_WAIT_S: Final = 3600.0  # for somebody else who writes the same shard: 100 GB at 30 MB/s


class ShardRecord(msgspec.Struct, frozen=True):
    """What a shard is, beside its file."""

    key: str
    model: str  # id of the whole model
    source: str  # hash of the model's content
    file: str
    sha256: str
    size_bytes: int
    expert_count: int
    source_expert_count: int
    layers: tuple[int, ...]
    kept: Kept


def source_digest(files: Sequence[Path], identities: FileIdentities, stop: threading.Event | None = None) -> str:
    """What a model is by content: the SHA-256 over the SHA-256 of its parts in their order.

    Raises:
        ModelFileUnusable: a part cannot be read. Stopped: `stop` was set.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(identities.identify_now(file, stop).sha256))
    return digest.hexdigest()


def shard_key(source: str, kept: Kept) -> str:
    """The name of the shard of this model with these experts."""
    text = f"{FORMAT} {source} " + ";".join(",".join(str(expert) for expert in experts) for experts in kept)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:KEY_CHARS]


class ShardStore:
    """One home's shards."""

    def __init__(self, folder: Path, identities: FileIdentities) -> None:
        self.folder = folder
        self._identities = identities

    @classmethod
    def of_home(cls, home: Home) -> ShardStore:
        return cls(home.root / "shards", FileIdentities.of_home(home))

    def find(self, key: str) -> ShardRecord | None:
        """The shard of this key, if it is there and is, by its hash, what was written."""
        record = self._record(self.folder / key)
        if record is None or record.key != key:
            return None
        path = self.path(record)
        try:
            whole = path.stat().st_size == record.size_bytes
        except OSError:
            return None
        if not whole or self._identities.identify_now(path).sha256 != record.sha256:
            return None
        return record

    def path(self, record: ShardRecord) -> Path:
        """Where its file is."""
        return self.folder / record.key / record.file

    def make(
        self,
        model: SplitModel,
        source: str,
        kept: Kept,
        progress: ShardProgress = lambda _done, _whole: None,
        free_bytes: FreeBytes = lambda path: shutil.disk_usage(path).free,
    ) -> ShardRecord:
        """The shard, written unless it is there.

        Raises:
            NoSpace, StorageError: the disk does not take it, or another process is writing it for an hour.
            ModelFileUnusable: the model cannot be read, or not be cut so.
        """

        def write(target: Path) -> ShardFile:
            with LocalParts.open(model.files) as parts:
                layout = layout_of(model.headers, model.experts, parts, kept, source)
                check: Callable[[], None] = parts.check_unchanged
                return write_shard(layout, parts, target, check=check, progress=progress, free_bytes=free_bytes)

        return self.keep(model_id(model.files[0].name), model.experts, source, kept, write)

    def keep(
        self, model: str, experts: ExpertModel, source: str, kept: Kept, write: Callable[[Path], ShardFile]
    ) -> ShardRecord:
        """The same for whoever has another way to `write` it to a path. What that raises is raised."""
        key = shard_key(source, kept)
        with self._locked(key):
            known = self.find(key)
            if known is not None:
                return known
            place = self.folder / key
            done = write(place / f"{model}.gguf")
            count, layers = experts.expert_count, experts.layers
            record = ShardRecord(
                key, model, source, done.path.name, done.sha256, done.size_bytes, len(kept[0]), count, layers, kept
            )
            self._save(place, record)
            return record

    def records(self) -> list[ShardRecord]:
        """All shards with a record, by model and size."""
        try:
            folders = sorted(path for path in self.folder.iterdir() if path.is_dir())[:MAX_SHARDS]
        except OSError:
            return []
        found = [record for folder in folders if (record := self._record(folder)) is not None]
        return sorted(found, key=lambda record: (record.model, record.expert_count, record.key))

    def remove(self, record: ShardRecord) -> None:
        """Delete a shard; one that somebody else is writing stays. What cannot be deleted stays, too."""
        lock = FileLock.acquire(self.folder / f".{record.key}.lock")
        if lock is not None:
            with lock:
                shutil.rmtree(self.folder / record.key, ignore_errors=True)

    def _locked(self, key: str) -> FileLock:
        lock_path = self.folder / f".{key}.lock"
        try:
            lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be used: {error.strerror}.") from error
        lock = FileLock.acquire(lock_path, LOCK_WAIT_S)
        if lock is None:
            raise StorageError(
                "Another process has been writing the same shard for an hour. Try again when it is done."
            )
        return lock

    def _record(self, folder: Path) -> ShardRecord | None:
        try:
            with (folder / RECORD).open("rb") as file:
                record = msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=ShardRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        safe = Path(record.file).name == record.file and record.key == folder.name
        return record if safe else None

    def _save(self, folder: Path, record: ShardRecord) -> None:
        beside = folder / f".{RECORD}{PARTIAL_SUFFIX}"
        try:
            beside.write_bytes(msgspec.json.encode(record))
            beside.replace(folder / RECORD)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise StorageError(f"{folder / RECORD} could not be written: {error.strerror}.") from error
