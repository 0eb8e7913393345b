"""A model's files as the relay uses them: open, identified by content, and where each tensor lies in them.

Also the FNV values that llama-server told of tensors whose bytes were then seen to be the file's: with them a later load needs no bytes
at all. Safe from several connections of one loop; reading is pread and sendfile, so descriptors are shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agentmesh.core.errors import StreamClosed
from agentmesh.core.paths import Home
from agentmesh.inference.logic.rpc_limits import MAX_HASH_FILE_BYTES, MAX_HASHED_FILES
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.gguf import part_files, read_header
from agentmesh.inference.models.identity import FileIdentities

_Key = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """One file. `key` is what it looked like when its content was known: (device, inode, size, mtime)."""

    path: Path
    sha256: bytes
    descriptor: int
    key: _Key


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are."""

    part: Part
    name: str
    offset: int
    size: int
    type_number: int


class WeightFiles:
    """See the module. `close` once, when no connection uses it any more."""

    def __init__(self, parts: Sequence[Part], places: dict[str, Place]) -> None:
        self._parts = tuple(parts)
        self._places = places
        self._closed = False

    @classmethod
    async def open(cls, path: Path, identities: FileIdentities) -> WeightFiles:
        """The files of the model that `path` is, or is a part of. Hashes what was never hashed: a minute for 40 GB.

        Raises:
            ModelFileUnusable: a part is missing, unusable, or changed while it was read.
        """
        return await cls.open_parts(await asyncio.to_thread(part_files, path), identities)

    @classmethod
    async def open_parts(cls, files: Sequence[Path], identities: FileIdentities) -> WeightFiles:
        """The same for the parts of a model, in order, wherever they lie and whatever they are called."""
        hashes = [bytes.fromhex((await identities.identify(file)).sha256) for file in files]
        opening = _Opening()
        try:
            return await asyncio.to_thread(opening.run, lambda: _open_all(files, hashes, identities))
        except BaseException:
            opening.give_up()
            raise

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The SHA-256 of each part, in order."""
        return tuple(part.sha256 for part in self._parts)

    def find(self, name: str | None, type_number: int, size: int) -> Place | None:
        """The tensor of this name, type and length in bytes, whatever its shape."""
        place = self._places.get(name or "")
        if place is None or place.type_number != type_number or place.size != size:
            return None
        return place

    def places(self) -> tuple[Place, ...]:
        """All tensors that can be found."""
        return tuple(self._places.values())

    def check(self, place: Place) -> None:
        """Whether its file is what it was when its content was known. Raises: ModelFileUnusable: it changed."""
        if self._closed or _key(place.part.descriptor) != place.part.key:
            raise ModelFileUnusable(f"{place.part.path} changed while it was served.")

    def close(self) -> None:
        """Let go of the files. May be called twice."""
        if not self._closed:
            self._closed = True
            for part in self._parts:
                os.close(part.descriptor)


class _Opening:
    """Files that are opened in a thread and closed if nobody takes them any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: WeightFiles | None = None
        self._given_up = False

    def run(self, open_all: Callable[[], WeightFiles]) -> WeightFiles:
        opened = open_all()
        with self._lock:
            self._opened = opened
            if self._given_up:
                opened.close()
        return opened

    def give_up(self) -> None:
        with self._lock:
            self._given_up = True
            if self._opened is not None:
                self._opened.close()


def _open_all(files: Sequence[Path], hashes: Sequence[bytes], identities: FileIdentities) -> WeightFiles:
    """In a thread. A file that changed since it was hashed is noticed by asking for its hash again: the answer is remembered."""
    with contextlib.ExitStack() as opened:
        parts: list[Part] = []
        places: dict[str, Place] = {}
        doubled: set[str] = set()
        for file, sha256 in zip(files, hashes, strict=True):
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ModelFileUnusable(f"{file} cannot be read: {error.strerror}.") from error
            opened.callback(os.close, descriptor)
            part = Part(file, sha256, descriptor, _key(descriptor))
            header = read_header(file)
            if identities.identify_now(file).sha256 != sha256.hex() or _key_of(file) != part.key:
                raise ModelFileUnusable(f"{file} changed while it was read.")
            parts.append(part)
            for tensor in header.tensors:
                if tensor.name in places:
                    doubled.add(tensor.name)
                at = header.data_offset + tensor.offset
                places[tensor.name] = Place(part, tensor.name, at, tensor.size_bytes, tensor.type_number)
        opened.pop_all()
    return WeightFiles(parts, {name: place for name, place in places.items() if name not in doubled})


def _key(descriptor: int) -> _Key:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _key_of(path: Path) -> _Key:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_exactly(place: Place, start: int, count: int) -> bytes:
    """Bytes of a tensor, in a thread. Raises: StreamClosed: the file ends too early."""
    data = os.pread(place.part.descriptor, count, place.offset + start)
    if len(data) != count:
        raise StreamClosed(f"{place.part.path} is shorter than it was.")
    return data


def read_into(place: Place, start: int, block: memoryview) -> None:
    """The same into `block`, all of it."""
    if os.preadv(place.part.descriptor, [block], place.offset + start) != len(block):
        raise StreamClosed(f"{place.part.path} is shorter than it was.")


class WeightHashes:
    """FNV-1a values of tensors, by the SHA-256 of their file and their name, remembered in one small file of the home.

    Values are learned from our own program, which read the file (rpc/hashing.py), and from llama-server itself, from a hash that was
    followed by bytes equal to the file's. Losing them costs one load in which llama-server hands its weights to the gateway.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, dict[str, int]] = _load(path) if path is not None else {}
        self._doubtful: set[tuple[str, str]] = set()
        self._unsaved = False

    @classmethod
    def of_home(cls, home: Home) -> WeightHashes:
        """The ones that a home remembers. Reads a file."""
        return cls(home.root / "cache" / "tensor-hashes.json")

    def knows(self, place: Place) -> bool:
        """Whether any value is recorded, or none ever will be."""
        sha256 = place.part.sha256.hex()
        return place.name in self._known.get(sha256, {}) or (sha256, place.name) in self._doubtful

    def fits(self, place: Place, fnv: int) -> bool:
        """Whether this is the recorded value."""
        return self._known.get(place.part.sha256.hex(), {}).get(place.name) == fnv

    def learn(self, place: Place, fnv: int) -> None:
        """This value was told, and the bytes behind it were the file's."""
        sha256 = place.part.sha256.hex()
        if (sha256, place.name) in self._doubtful:
            return
        names = self._known.pop(sha256, {})
        self._known[sha256] = names  # the newest last
        known = names.setdefault(place.name, fnv)
        if known != fnv:  # one of the two was wrong
            del names[place.name]
            self._doubtful.add((sha256, place.name))
        while len(self._known) > MAX_HASHED_FILES:
            del self._known[next(iter(self._known))]
        self._unsaved = True

    async def save(self) -> None:
        """Write what was learned, if anything was."""
        if self._unsaved and self._path is not None:
            self._unsaved = False
            await asyncio.to_thread(_save, self._path, msgspec.json.encode(self._known))


def _load(path: Path) -> dict[str, dict[str, int]]:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_HASH_FILE_BYTES), type=dict[str, dict[str, int]])
    except (OSError, msgspec.MsgspecError):
        return {}


def _save(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError:  # a cache: everything works without it
        with contextlib.suppress(OSError):
            beside.unlink()
