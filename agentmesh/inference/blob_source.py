"""Fetching model files from members: the source that downloads ask before the hub.

Downloads block and run in threads; the mesh lives on the event loop. Owns the bridge between the two, whom to ask, and when to leave
a peer: it died, it says one size and means another, it is slow while others are not, what it gave was not what it was asked for. The
hash is checked by transfer.py, as of any source. State: PeerMemory, which the event loop fills while a body is open and the
download's thread reads between two of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from agentmesh.core.errors import AgentMeshError, PeerError, ProtocolError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.blobs import read_frame
from agentmesh.inference.logic.blob_limits import (
    ASK_TIMEOUT_S,
    FETCH_STALL_S,
    MAX_BLOB_ANSWER_BYTES,
    MAX_DISTRUSTED_FILES,
    MAX_PEERS_ASKED,
    PATIENT_RETRY_S,
    PEERS_ASKED_AT_ONCE,
    PIECE_BYTES,
    QUEUED_PIECES,
    SLOW_BYTES_PER_S,
    SLOW_WINDOW_S,
)
from agentmesh.inference.logic.blob_wire import Get, Probe, Status, answer_decoder, frame_of
from agentmesh.inference.models.errors import HubUnavailable, NoPeerHas
from agentmesh.inference.models.source import Body, WantedFile
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

OpenBlobStream = Callable[[bytes], Awaitable[Stream]]
"""A fresh `blob` stream to a peer, its header sent: `lambda peer: mesh.open_stream(peer, StreamKind.BLOB)`."""

_POLL_S: Final = 2.0  # a thread that waits looks as often whether the event loop still runs
_SLOW: Final = "it is slow"


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """When a peer is left. See logic/blob_limits.py; tests have less time."""

    ask_s: float = ASK_TIMEOUT_S
    stall_s: float = FETCH_STALL_S
    slow_bytes_per_s: float = SLOW_BYTES_PER_S
    slow_window_s: float = SLOW_WINDOW_S


class PeerMemory:
    """Who gave a part of which file, and whose parts turned out wrong. By SHA-256; shared by the sources of one download."""

    def __init__(self) -> None:
        self._gave: dict[str, set[bytes]] = {}
        self._lied: dict[str, set[bytes]] = {}

    def gave(self, sha256: str, peer: bytes) -> None:
        """A peer is about to give a part."""
        self._gave.setdefault(sha256, set()).add(peer)

    def liars(self, sha256: str) -> set[bytes]:
        """Who is not asked for this file any more."""
        return set(self._lied.get(sha256, ()))

    def distrust(self, sha256: str) -> set[bytes]:
        """The whole was wrong: all who gave a part are not asked again. Returns them."""
        gave = self._gave.pop(sha256, set[bytes]())
        self._lied.setdefault(sha256, set()).update(gave)
        while len(self._lied) > MAX_DISTRUSTED_FILES:
            del self._lied[next(iter(self._lied))]
        return gave


class PeerSource:
    """A FileSource: the members of the mesh. `open` is called in a download's thread, never on the loop.

    Args:
        loop: the mesh's.
        open_stream: see OpenBlobStream; called on the loop.
        peers: whom to ask, nearest first; called on the loop.
        patient: there is no other source any more: slow peers are kept, busy ones waited for.
        memory: who is not to be asked, when several sources share it.
    """

    name = "the members of the mesh"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        open_stream: OpenBlobStream,
        peers: Callable[[], Sequence[bytes]],
        *,
        patient: bool = False,
        limits: FetchLimits | None = None,
        memory: PeerMemory | None = None,
    ) -> None:
        self._loop = loop
        self._open_stream = open_stream
        self._peers = peers
        self._patient = patient
        self._limits = limits or FetchLimits()
        self._memory = memory or PeerMemory()

    @contextlib.contextmanager
    def open(self, file: WantedFile, offset: int) -> Generator[Body]:
        """See FileSource.

        Raises:
            NoPeerHas: the file has no SHA-256 to ask for. Later, from the body: nobody has it or has time.
        """
        if file.sha256 is None:
            raise NoPeerHas(f"'{file.path}' has no SHA-256, so members cannot be asked for it.")
        body = _PeerBody(offset, self._loop)
        work = self._fill(file, file.sha256, offset, body)
        try:
            body.task = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise NoPeerHas("The node stops.") from error
        try:
            yield body
        finally:
            body.task.cancel()

    def distrust(self, file: WantedFile) -> bool:
        """See FileSource: whoever gave a part of it is not asked for this file again."""
        gave = self._memory.distrust(file.digest)
        if gave:
            names = ", ".join(sorted(peer.hex()[:8] for peer in gave))
            _log.warning("'%s' from %s has not the hash that was asked for; thrown away", file.path, names)
        return bool(gave)

    # ------------------------------------------------------------------ on the loop

    async def _fill(self, file: WantedFile, sha256: str, offset: int, body: _PeerBody) -> None:
        """Feed the body from one peer after the other until it is whole."""
        try:
            await self._from_peers(file, sha256, offset, body)
            await body.put(None)
        except asyncio.CancelledError:
            body.fail(HubUnavailable("The node stops."))
            raise
        except AgentMeshError as error:
            body.fail(error)
        except Exception as error:  # noqa: BLE001 - a task's root: the thread must not wait for it in vain
            _log.exception("fetching '%s' from members broke", file.path)
            body.fail(NoPeerHas(f"Fetching '{file.path}' from members broke: {error}"))

    async def _from_peers(self, file: WantedFile, sha256: str, offset: int, body: _PeerBody) -> None:
        left = self._memory.liars(sha256)
        slow: set[bytes] = set()
        while offset < file.size_bytes:
            asked = Asked(self._open_stream, self._limits.ask_s)
            holder = await asked.holder(file, sha256, self._whom(left | slow))
            if holder is None and self._patient:
                holder = await asked.holder(file, sha256, self._whom(left))
            if holder is None:
                raise self._nobody(file, busy=asked.busy)
            peer, stream = holder
            self._memory.gave(sha256, peer)
            leave_when_slow = not self._patient or peer not in slow
            fetch = _Fetch(stream, file, self._limits, leave_when_slow=leave_when_slow)
            try:
                offset, why = await fetch.run(bytes.fromhex(sha256), offset, body)
            finally:
                stream.abort()  # does nothing to a stream that ended both ways
            if why:
                _log.info("%s is left for '%s' at byte %d: %s", peer.hex()[:8], file.path, offset, why)
                (slow if why == _SLOW else left).add(peer)

    def _whom(self, without: set[bytes]) -> list[bytes]:
        return [peer for peer in self._peers() if peer not in without][:MAX_PEERS_ASKED]

    def _nobody(self, file: WantedFile, *, busy: bool) -> AgentMeshError:
        if busy and self._patient:
            return HubUnavailable(f"The members that have '{file.path}' are busy.", PATIENT_RETRY_S)
        return NoPeerHas(f"No member of the mesh gives '{file.path}' now.")


class Asked:
    """Members asked side by side who has a file; the first that says so is the nearest, or has the least to do."""

    def __init__(self, open_stream: OpenBlobStream, ask_s: float) -> None:
        self._open_stream = open_stream
        self._ask_s = ask_s
        self.busy = False  # somebody has it and gives no more at present

    async def holder(self, file: WantedFile, sha256: str, peers: Sequence[bytes]) -> tuple[bytes, Stream] | None:
        """Who has it, and the stream on which it said so."""
        for start in range(0, len(peers), PEERS_ASKED_AT_ONCE):
            found = await self._first(file, bytes.fromhex(sha256), peers[start : start + PEERS_ASKED_AT_ONCE])
            if found is not None:
                return found
        return None

    async def _first(self, file: WantedFile, sha256: bytes, peers: Sequence[bytes]) -> tuple[bytes, Stream] | None:
        tasks = TaskSet("blob probes")
        found: asyncio.Queue[tuple[bytes, Stream] | None] = asyncio.Queue()

        async def ask(peer: bytes) -> None:
            stream: Stream | None = None
            try:
                stream = await self._ask(file, sha256, peer)
            finally:  # whatever goes wrong with one, the others are not waited for in vain
                found.put_nowait(None if stream is None else (peer, stream))

        try:
            for peer in peers:
                tasks.spawn(ask(peer), name=peer.hex()[:8])
            for _ in peers:
                if (first := await found.get()) is not None:
                    return first
            return None
        finally:
            await tasks.close()
            while not found.empty():  # who came second
                if (other := found.get_nowait()) is not None:
                    other[1].abort()

    async def _ask(self, file: WantedFile, sha256: bytes, peer: bytes) -> Stream | None:
        stream: Stream | None = None
        has = False
        try:
            async with asyncio.timeout(self._ask_s):
                stream = await self._open_stream(peer)
                await stream.write(frame_of(Probe(sha256)))
                answer = await read_frame(stream, answer_decoder, MAX_BLOB_ANSWER_BYTES)
            here = answer is not None and answer.status is not Status.NONE and answer.size == file.size_bytes
            has = here and answer is not None and answer.status is Status.HAVE
            self.busy = self.busy or (here and not has)
        except (PeerError, TimeoutError) as error:
            _log.debug("%s does not say whether it has a file: %s", peer.hex()[:8], error)
        finally:
            if stream is not None and not has:
                stream.abort()
        return stream if has else None


class _Fetch:
    """One file from one peer, from an offset on."""

    def __init__(self, stream: Stream, file: WantedFile, limits: FetchLimits, *, leave_when_slow: bool) -> None:
        self._stream = stream
        self._size = file.size_bytes
        self._limits = limits
        self._leave_when_slow = leave_when_slow
        self._window_bytes = 0
        self._window_s = 0.0  # spent waiting for the peer: our own disk's time is not held against it

    async def run(self, sha256: bytes, offset: int, body: _PeerBody) -> tuple[int, str]:
        """How far it went, and why not to the end; no reason: it is whole."""
        try:
            if not await self._begin(sha256, offset):
                return offset, "it does not give it after all"
        except (PeerError, TimeoutError) as error:
            return offset, str(error) or "it does not answer"
        while offset < self._size:
            pieces: list[bytes] = []
            why = await self._gather(pieces, min(PIECE_BYTES, self._size - offset))
            if pieces:
                await body.put(pieces)
                offset += sum(map(len, pieces))
            if why and offset < self._size:
                return offset, why
        await self._finish()
        return offset, ""

    async def _begin(self, sha256: bytes, offset: int) -> bool:
        async with asyncio.timeout(self._limits.ask_s):
            await self._stream.write(frame_of(Get(sha256, offset)))
            answer = await read_frame(self._stream, answer_decoder, MAX_BLOB_ANSWER_BYTES)
        return answer is not None and answer.status is Status.HAVE and answer.size == self._size

    async def _gather(self, pieces: list[bytes], missing: int) -> str:
        """Collect what is worth waking a thread for; a reason if the peer is to be left, with what came before."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            while missing:
                async with asyncio.timeout(self._limits.stall_s):
                    data = await self._stream.read(missing)
                if not data:
                    return "it ended before the file's end"
                pieces.append(data)
                missing -= len(data)
                now_s = loop.time()
                if self._is_slow(len(data), now_s - began_s):
                    return _SLOW
                began_s = now_s
        except TimeoutError:
            return f"it sent nothing for {self._limits.stall_s:g} s"
        except PeerError as error:
            return str(error)
        return ""

    def _is_slow(self, count: int, waited_s: float) -> bool:
        self._window_bytes += count
        self._window_s += waited_s
        if self._window_s < self._limits.slow_window_s:
            return False
        rate = self._window_bytes / self._window_s
        self._window_bytes, self._window_s = 0, 0.0
        return self._leave_when_slow and rate < self._limits.slow_bytes_per_s

    async def _finish(self) -> None:
        """See the end, so that the connection closes cleanly. What comes instead is not wanted."""
        with contextlib.suppress(PeerError, TimeoutError):
            async with asyncio.timeout(self._limits.ask_s):
                await self._stream.end()
                if await self._stream.read(1):
                    raise ProtocolError("The peer sent more than it promised.")


class _PeerBody:
    """What goes from the event loop to the thread: pieces, then None or an error. See source.Body."""

    def __init__(self, start: int, loop: asyncio.AbstractEventLoop) -> None:
        self.start = start
        self.task: Future[None] | None = None
        self._loop = loop
        self._items: queue.SimpleQueue[list[bytes] | AgentMeshError | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(QUEUED_PIECES)

    async def put(self, item: list[bytes] | None) -> None:
        """On the loop: hand over, waiting while the thread does not keep up."""
        await self._room.acquire()
        self._items.put(item)

    def fail(self, error: AgentMeshError) -> None:
        """On the loop: nothing more comes."""
        self._items.put(error)

    def chunks(self) -> Iterator[bytes]:
        """In the thread. See source.Body."""
        while True:
            try:
                item = self._items.get(timeout=_POLL_S)
            except queue.Empty:
                if not self._loop.is_running() or self.task is None or self.task.done():
                    raise NoPeerHas("The node stops.") from None
                continue
            if item is None:
                return
            if isinstance(item, AgentMeshError):
                raise item
            with contextlib.suppress(RuntimeError):  # the loop has closed: the error comes next
                self._loop.call_soon_threadsafe(self._room.release)
            yield from item
