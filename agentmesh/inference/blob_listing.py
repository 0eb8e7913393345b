"""What a model's reference means when the hub cannot be asked: members name the files, content is checked against what they name.

Owns that exception, and the order of a model's sources. The hub is always asked first what a name means; only when it cannot be
reached are members believed, and only as far as those who speak of the same commit agree on a file.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError as FutureCancelled

from agentmesh.core.errors import NotFound, PeerError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.blob_source import OpenBlobStream, PeerMemory, PeerSource
from agentmesh.inference.blobs import read_frame
from agentmesh.inference.logic.blob_limits import ASK_TIMEOUT_S, MAX_BLOB_ANSWER_BYTES, PEERS_ASKED_AT_ONCE
from agentmesh.inference.logic.blob_wire import Find, Found, FoundFile, found_decoder, frame_of, usable
from agentmesh.inference.logic.reference import DEFAULT_REVISION, Reference
from agentmesh.inference.models.download import DownloadPlan, plan
from agentmesh.inference.models.errors import HubUnavailable, NoPeerHas
from agentmesh.inference.models.hub import Hub, RepoListing
from agentmesh.inference.models.source import FileSource, WantedFile
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)


class MeshFiles:
    """The members as a place for model files. Its methods block: they are called in a download's thread.

    Args:
        loop: the mesh's.
        open_stream: see OpenBlobStream.
        peers: members that give files, nearest first; called on the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, open_stream: OpenBlobStream, peers: Callable[[], Sequence[bytes]]
    ) -> None:
        self._loop = loop
        self._open_stream = open_stream
        self._peers = peers

    def sources(self, hub: Hub) -> list[FileSource]:
        """In which order a file's bytes are asked for: members, the hub, and members again that were slow or busy."""
        memory = PeerMemory()
        first = PeerSource(self._loop, self._open_stream, self._peers, memory=memory)
        last = PeerSource(self._loop, self._open_stream, self._peers, patient=True, memory=memory)
        return [first, hub, last]

    def plan(self, reference: Reference, hub: Hub) -> DownloadPlan:
        """What downloading `reference` would fetch: as the hub says, or as members say if it cannot be reached.

        Raises:
            HubUnavailable: neither can tell. See download.plan for more.
        """
        try:
            return plan(reference, hub)
        except HubUnavailable as error:
            try:
                found = plan(reference, self)
            except NotFound:
                raise error from None
            names = ", ".join(file.path for file in found.files)
            _log.warning("the hub cannot be asked (%s); members say that '%s' is %s", error, found.id, names)
            return found

    def listing(self, repo: str, revision: str = DEFAULT_REVISION) -> RepoListing:
        """What members have of a repository.

        Raises:
            NoPeerHas: nothing, or the node stops.
        """
        work = self._ask_all(repo, revision)
        try:
            asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise NoPeerHas("The node stops.") from error
        try:
            answers = asked.result(2 * ASK_TIMEOUT_S)
        except (TimeoutError, FutureCancelled) as error:
            asked.cancel()
            raise NoPeerHas("The node stops.") from error
        found = agreed(answers)
        if not found.files:
            raise NoPeerHas(f"No member of the mesh has files of '{repo}'.")
        files = {file.path: _wanted(repo, revision, found.commit, file) for file in found.files}
        return RepoListing(repo, revision, found.commit, files)

    async def _ask_all(self, repo: str, revision: str) -> list[Found]:
        tasks = TaskSet("blob listings")
        asked = [
            tasks.spawn(self._ask(peer, repo, revision), name=peer.hex()[:8])
            for peer in self._peers()[:PEERS_ASKED_AT_ONCE]
        ]
        try:
            await asyncio.gather(*asked, return_exceptions=True)  # what breaks one is logged by its task set
            return [found for task in asked if task.exception() is None and (found := task.result()) is not None]
        finally:
            await tasks.close()

    async def _ask(self, peer: bytes, repo: str, revision: str) -> Found | None:
        stream: Stream | None = None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                stream = await self._open_stream(peer)
                await stream.write(frame_of(Find(repo, revision)))
                found = await read_frame(stream, found_decoder, MAX_BLOB_ANSWER_BYTES)
            return usable(found) if found is not None else None
        except (PeerError, TimeoutError) as error:
            _log.debug("%s does not say what it has of '%s': %s", peer.hex()[:8], repo, error)
            return None
        finally:
            if stream is not None:
                stream.abort()


def agreed(answers: Sequence[Found]) -> Found:
    """What members say together: the commit that most name (of equals the first), without files on which they differ.

    The content of a commit never changes, so members who differ about a file of one commit are wrong or lie.
    """
    commits = Counter(found.commit for found in answers if found.commit)
    if not commits:
        return Found("")
    commit = max(commits, key=lambda name: commits[name])
    files: dict[str, FoundFile] = {}
    disputed: set[str] = set()
    for found in answers:
        for file in found.files if found.commit == commit else ():
            if files.setdefault(file.path, file) != file:
                disputed.add(file.path)
    return Found(commit, tuple(file for path, file in files.items() if path not in disputed))


def _wanted(repo: str, revision: str, commit: str, file: FoundFile) -> WantedFile:
    return WantedFile(repo, revision, commit, file.path, file.size, file.sha256.hex(), None)
