"""Writing one shard of a model: copied piece by piece into a file that gets its name when it is whole, and hashed on the way.

Owns the bytes on their way and what a full disk, a cut source or Ctrl-C leave behind: nothing. What goes where is said in
inference.logic.gguf_cut. Refusals come before the first byte is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec

from agentmesh.core.errors import StorageError
from agentmesh.inference.logic.expert_tensors import ExpertModel, NotSplittable, expert_model
from agentmesh.inference.logic.gguf_cut import KEYS_START, Copy, ShardLayout, keys_end, shard_layout
from agentmesh.inference.logic.gguf_header import Header
from agentmesh.inference.logic.moe import Kept
from agentmesh.inference.models.download import SPACE_MARGIN_BYTES, FreeBytes, size_text
from agentmesh.inference.models.errors import ModelFileUnusable, NoSpace
from agentmesh.inference.models.gguf import read_header, read_model

CHUNK_BYTES: Final = 4 * 1024 * 1024
PARTIAL_SUFFIX: Final = ".incomplete"
_ZEROS: Final = bytes(1 << 20)  # the largest alignment that a header may ask for

# Called with the bytes of the shard that are written, and how many there will be.
ShardProgress = Callable[[int, int], None]


class Parts(Protocol):
    """Whoever has the bytes of a model's parts."""

    def read(self, part: int, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes from `offset` on.

        Raises:
            ModelFileUnusable, HubError and its kin: they are not to be had.
        """
        ...


class ShardFile(msgspec.Struct, frozen=True):
    """A shard on disk."""

    path: Path
    size_bytes: int
    sha256: str


class SplitModel(msgspec.Struct, frozen=True):
    """A model on disk that can be cut by experts."""

    files: tuple[Path, ...]
    headers: tuple[Header, ...]
    experts: ExpertModel


def read_expert_model(path: Path) -> SplitModel:
    """The mixture of experts that `path` is, or is a part of.

    Raises:
        ModelFileUnusable: it is unusable, or cannot be cut by experts; nothing was written.
    """
    files = read_model(path).files
    headers = tuple(read_header(file) for file in files)
    return SplitModel(files, headers, experts_of(headers, str(files[0])))


def experts_of(headers: Sequence[Header], name: str) -> ExpertModel:
    """What can be cut of the model.

    Raises:
        ModelFileUnusable: nothing, with the reason.
    """
    try:
        return expert_model(headers)
    except NotSplittable as error:
        raise ModelFileUnusable(f"{name} cannot be split by experts: {error}.") from error


class LocalParts:
    """A model's files, held open, so that they are the same from the first byte to the last."""

    def __init__(self, files: Sequence[Path], handles: Sequence[BinaryIO]) -> None:
        self._files = files
        self._handles = handles
        self._before = [_mark(handle) for handle in handles]

    @classmethod
    @contextlib.contextmanager
    def open(cls, files: Sequence[Path]) -> Generator[LocalParts]:
        """Raises: ModelFileUnusable: one cannot be read."""
        with contextlib.ExitStack() as stack:
            handles: list[BinaryIO] = []
            for file in files:
                try:
                    handles.append(stack.enter_context(file.open("rb")))
                except OSError as error:
                    raise ModelFileUnusable(f"{file} cannot be read: {error.strerror}.") from error
            yield cls(files, handles)

    def read(self, part: int, offset: int, length: int) -> Iterator[bytes]:
        """See Parts."""
        while length > 0:
            try:
                data = os.pread(self._handles[part].fileno(), min(length, CHUNK_BYTES), offset)
            except OSError as error:
                raise ModelFileUnusable(f"{self._files[part]} cannot be read: {error.strerror}.") from error
            if not data:
                raise ModelFileUnusable(f"{self._files[part]} ends at byte {offset}; its header tells of more.")
            yield data
            offset += len(data)
            length -= len(data)

    def check_unchanged(self) -> None:
        """Raises: ModelFileUnusable: a file was written to since it was opened."""
        for file, handle, before in zip(self._files, self._handles, self._before, strict=True):
            if _mark(handle) != before:
                raise ModelFileUnusable(f"{file} changed while the shard was written; nothing was kept. Try again.")


def layout_of(
    headers: Sequence[Header], experts: ExpertModel, parts: Parts, kept: Kept, source_digest: str
) -> ShardLayout:
    """The file that holds the kept experts.

    Raises:
        ModelFileUnusable: `kept` is no choice of this model's experts, or the header cannot be read.
    """
    end = keys_end(headers[0])
    keys = b"".join(parts.read(0, KEYS_START, end - KEYS_START))
    try:
        return shard_layout(headers, keys, experts, kept, source_digest)
    except NotSplittable as error:
        raise ModelFileUnusable(f"This part cannot be made: {error}.") from error


def write_shard(
    layout: ShardLayout,
    parts: Parts,
    target: Path,
    *,
    check: Callable[[], None] = lambda: None,
    progress: ShardProgress = lambda _done, _whole: None,
    free_bytes: FreeBytes = lambda path: shutil.disk_usage(path).free,
) -> ShardFile:
    """Write the shard to `target`, replacing what is there. `check` runs when all is read; what it raises keeps the shard from its name.

    Raises:
        NoSpace, StorageError: the disk does not take it. ModelFileUnusable, HubError: the model cannot be read. Nothing is left of it.
    """
    make_room(target.parent, layout.size_bytes, free_bytes)
    clear_partials(target)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # whoever finds it without a lock knows that its writer is dead
            digest = _copy(layout, parts, handle, progress)
            check()
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(target)
        _sync_folder(target.parent)
    except OSError as error:  # of writing only: what goes wrong with reading is said by the parts
        raise _translated(error, target) from error
    finally:  # also for KeyboardInterrupt; after the rename there is nothing of this name
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return ShardFile(target, layout.size_bytes, digest)


def shard_digest(layout: ShardLayout, parts: Parts) -> str:
    """The SHA-256 that the shard's file would have, without writing it: for whoever is to check one that was made elsewhere."""
    digest = hashlib.sha256()
    for data in _stream(layout, parts):
        digest.update(data)
    return digest.hexdigest()


def clear_partials(target: Path) -> None:
    """Remove what killed writers of this file left; what somebody is writing stays."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError), path.open("rb") as handle:  # locked: BlockingIOError, and it stays
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def make_room(folder: Path, size_bytes: int, free_bytes: FreeBytes) -> None:
    """The folder, and the certainty that so many bytes fit now.

    Raises:
        NoSpace, StorageError: with what is needed and what there is.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = free_bytes(folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error.strerror}.") from error
    if size_bytes + SPACE_MARGIN_BYTES > free:
        raise NoSpace(
            f"The shard needs {size_text(size_bytes)} and {size_text(SPACE_MARGIN_BYTES)} to spare; {folder} has "
            f"{size_text(free)} free. Choose another folder, or free space there."
        )


def _stream(layout: ShardLayout, parts: Parts) -> Iterator[bytes]:
    yield layout.header
    for piece in layout.body():
        if isinstance(piece, Copy):
            yield from parts.read(piece.part, piece.offset, piece.length)
        else:
            yield _ZEROS[:piece]


def _copy(layout: ShardLayout, parts: Parts, handle: BinaryIO, progress: ShardProgress) -> str:
    digest = hashlib.sha256()
    done = 0
    for data in _stream(layout, parts):
        handle.write(data)
        digest.update(data)
        done += len(data)
        progress(done, layout.size_bytes)
    if done != layout.size_bytes:
        raise StorageError(f"The shard has {done} bytes instead of {layout.size_bytes}; this is a defect of agentmesh.")
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename last (fsync(2): the folder needs its own)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"The disk is full: {path.parent} takes no more. Nothing was kept of the shard.")
    return StorageError(f"{path} could not be written: {error.strerror}.")


def _mark(handle: BinaryIO) -> tuple[int, int]:
    status = os.fstat(handle.fileno())
    return status.st_size, status.st_mtime_ns
