"""A shard of a model that is on the hub, without the rest of it: the headers, then only the bytes that the shard holds.

Owns the ranges. The bytes come from the listed commit over TLS, but the hub's SHA-256 is of whole files: pieces of them cannot be checked
against it. Whoever holds the model can tell the shard's SHA-256 without writing it (shard.shard_digest), and so check it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agentmesh.inference.logic.expert_tensors import ExpertModel
from agentmesh.inference.logic.gguf_cut import Copy, ShardLayout
from agentmesh.inference.logic.gguf_facts import split_facts
from agentmesh.inference.logic.gguf_header import MAX_HEADER_BYTES, BadHeader, Header, parse_header
from agentmesh.inference.logic.moe import Kept
from agentmesh.inference.models.errors import HubError, HubUnavailable, ModelFileUnusable
from agentmesh.inference.models.shard import Parts, ShardFile, ShardProgress, experts_of, layout_of, write_shard
from agentmesh.inference.models.source import Backoff, Body, Pause, WantedFile

# Bytes between two wanted pieces that are read over instead of asking anew: at 100 Mbit/s they take as long as a request with its redirect.
GAP_BYTES: Final = 1024 * 1024


class RangeSource(Protocol):
    """Who has files and gives pieces of them."""

    def open(self, file: WantedFile, offset: int, length: int | None = None) -> AbstractContextManager[Body]:
        """See Hub.open."""
        ...


class RemoteModel(msgspec.Struct, frozen=True):
    """A mixture of experts on the hub that can be cut. `source` is what shard_store.source_digest gives for the downloaded files."""

    files: tuple[WantedFile, ...]
    headers: tuple[Header, ...]
    experts: ExpertModel
    source: str


class HubParts:
    """A model's parts on the hub."""

    def __init__(self, hub: RangeSource, files: Sequence[WantedFile], pause: Pause = time.sleep) -> None:
        self._hub = hub
        self._files = files
        self._pause = pause

    def read(self, part: int, offset: int, length: int) -> Generator[bytes]:
        """See Parts: asked again from where it broke off, as downloads are.

        Raises:
            HubError and its kin: the hub does not give it, or gives files only as a whole.
        """
        file, backoff = self._files[part], Backoff(self._pause)
        while length > 0:
            before = length
            try:
                with self._hub.open(file, offset, length) as body:
                    if body.start != offset:
                        raise HubError(f"The hub gives '{file.path}' only as a whole. Download it, then split it.")
                    for chunk in body.chunks():
                        data = chunk[:length]
                        offset, length = offset + len(data), length - len(data)
                        yield data
                        if not length:
                            return
                raise HubUnavailable(f"'{file.path}' broke off {length} bytes before the end of a piece.")
            except HubUnavailable as error:
                if length < before:
                    backoff.progress()
                backoff.wait(error)


class JoinedParts:
    """Reads the pieces of one layout, in its order, through others in fewer and longer reads: small gaps are read over."""

    def __init__(self, base: Parts, layout: ShardLayout, gap_bytes: int = GAP_BYTES) -> None:
        self._base = base
        self._spans = {(part, start): end for part, start, end in _spans(layout, gap_bytes)}
        self._part, self._at, self._end = -1, 0, 0
        self._chunks: Iterator[bytes] = iter(())
        self._rest = b""

    def read(self, part: int, offset: int, length: int) -> Iterator[bytes]:
        """See Parts. Must be asked for the layout's pieces in their order."""
        if part != self._part or not self._at <= offset < self._end:
            self._part, self._at, self._end = part, offset, self._spans[part, offset]
            self._chunks, self._rest = iter(self._base.read(part, offset, self._end - offset)), b""
        for _ in self._take(offset - self._at):
            pass
        yield from self._take(length)

    def _take(self, length: int) -> Iterator[bytes]:
        while length > 0:
            data = self._rest or next(self._chunks)  # a base that gives less has raised
            piece, self._rest = data[:length], data[length:]
            self._at, length = self._at + len(piece), length - len(piece)
            yield piece


def read_remote_model(files: Sequence[WantedFile], hub: RangeSource, pause: Pause = time.sleep) -> RemoteModel:
    """The headers of a model on the hub, whose parts are `files` in their order. Fetches some MB a part at most.

    Raises:
        ModelFileUnusable: it cannot be cut by experts, or its parts are not of one set. HubError and its kin: see Hub.
    """
    parts = HubParts(hub, files, pause)
    headers = tuple(_header(parts, number, file, len(files)) for number, file in enumerate(files))
    digest = hashlib.sha256()
    for file in files:
        if file.sha256 is None:
            raise ModelFileUnusable(f"The hub lists no SHA-256 for '{file.path}'. Download it, then split it.")
        digest.update(bytes.fromhex(file.sha256))
    return RemoteModel(tuple(files), headers, experts_of(headers, files[0].path), digest.hexdigest())


def fetch_shard(
    model: RemoteModel,
    hub: RangeSource,
    kept: Kept,
    target: Path,
    progress: ShardProgress = lambda _done, _whole: None,
    pause: Pause = time.sleep,
) -> ShardFile:
    """Write the shard with only its own bytes fetched. Not resumed: what broke off for good begins anew.

    Raises:
        NoSpace, StorageError, ModelFileUnusable, HubError and its kin: see write_shard. Nothing is left of it.
    """
    parts = HubParts(hub, model.files, pause)
    layout = layout_of(model.headers, model.experts, parts, kept, model.source)
    return write_shard(layout, JoinedParts(parts, layout), target, progress=progress)


def _header(parts: HubParts, number: int, file: WantedFile, count: int) -> Header:
    with closing(parts.read(number, 0, min(file.size_bytes, MAX_HEADER_BYTES))) as chunks:
        try:
            header = parse_header(_reader(chunks))
            place = split_facts(header)
        except BadHeader as error:
            raise ModelFileUnusable(f"'{file.path}' is not a usable GGUF file: {error}.") from error
    if header.file_end > file.size_bytes:
        raise ModelFileUnusable(f"'{file.path}' is cut short on the hub.")
    if (number, count) != (0, 1) if place is None else (place.number, place.count) != (number, count):
        raise ModelFileUnusable(f"'{file.path}' is not part {number + 1} of {count}.")
    return header


def _reader(chunks: Iterator[bytes]) -> Callable[[int], bytes]:
    rest = bytearray()

    def read(count: int) -> bytes:
        while len(rest) < count:
            data = next(chunks, b"")
            if not data:
                break
            rest.extend(data)
        taken = bytes(rest[:count])
        del rest[:count]
        return taken

    return read


def _spans(layout: ShardLayout, gap_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(part, start, end) of the reads that cover all pieces."""
    part, start, end = -1, 0, 0
    for piece in layout.body():
        if not isinstance(piece, Copy):
            continue
        if piece.part == part and end <= piece.offset <= end + gap_bytes:
            end = piece.offset + piece.length
            continue
        if part >= 0:
            yield part, start, end
        part, start, end = piece.part, piece.offset, piece.offset + piece.length
    if part >= 0:
        yield part, start, end
