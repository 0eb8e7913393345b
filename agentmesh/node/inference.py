"""The node's models and its API: which parts they have, how they hear of each other, and in which order they start and stop.

Wires serving (this node's engines), presence (what the mesh is told), the directory (what others tell), the proxy and the files
given to members. State: which members give files. Owner: the event loop. Decides nothing about models or routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

import agentmesh
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.blob_listing import MeshFiles
from agentmesh.inference.blobs import BlobService
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.presence import OFFER_VERSION, NodeOffer, decode_offer
from agentmesh.inference.logic.target import ServedModel
from agentmesh.inference.model_run import ModelRun
from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.presence import Publisher
from agentmesh.inference.proxy.answers import LocalAnswers
from agentmesh.inference.proxy.directory import NODE_KIND, Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.server import ApiServer
from agentmesh.inference.proxy.settings import ApiSettings
from agentmesh.inference.service import ModelService
from agentmesh.inference.serving_types import SplitFlags, Unready
from agentmesh.inference.settings import Lending, ServeSettings, Weights
from agentmesh.inference.unready import find_unready
from agentmesh.mesh.api import Mesh
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.logic.record import Record
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream
from agentmesh.node.options import NodeOptions, ServeOptions
from agentmesh.node.splits import NodeSplits

_log = logging.getLogger(__name__)

DRAIN_S: Final = 0.8  # answers in progress when the node stops; then they end with a word of it
DOORS_MARGIN_S: Final = 0.1  # for that word to go out before the engines end
ENGINE_GRACE_S: Final = 1.0  # from SIGTERM to SIGKILL of an engine when the node stops: it has nothing to save
FILES_LOOK_S: Final = 60.0  # how often it is looked whether there are model files to give


class NodeInference:
    """See the module. Made before the mesh starts; `start` after it, `stop` before it stops.

    Args:
        say: told one line for the user.
        on_ready: told of each model of this node that became ready.
        name: what this node calls itself.
    """

    def __init__(
        self,
        home: Home,
        node: bytes,
        mesh: Mesh,
        options: NodeOptions,
        *,
        say: Callable[[str], None],
        on_ready: Callable[[ServedModel], None],
        name: Callable[[], str],
        port: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._mesh = mesh
        self._tasks = TaskSet("inference")
        self._givers: dict[bytes, bytes] = {}  # members that give files -> the record that says so
        self._has_files = False
        self._look = asyncio.Event()
        self._engine_name = ""
        self.metrics = Metrics()
        self.directory = Directory(node, mesh.peer_states, loop.time)
        dispatcher = Dispatcher(self.directory, self.metrics, loop.time, loop.call_later, self._unready)
        answers = LocalAnswers(
            dispatcher.models, self.metrics.render, created_s=int(time.time()), port=port, here=self._unready
        )
        settings = ApiSettings(listen_all=options.listen_all, api_keys=options.api_keys, spill_folder=home.run)
        self.api = ApiServer(dispatcher, answers, settings, mesh.open_stream, self.metrics)
        serve = _serve_settings(options.serve, again=options.serve.again or not options.background)
        self.service = ModelService(
            home,
            node,
            serve,
            sources=MeshFiles(loop, self._open_blob, self._file_givers),
            say=say,
            on_ready=on_ready,
            spread=self._spread,
        )
        self._index = BlobIndex(
            HubCache(HubSettings.from_environment().cache), FileIdentities.of_home(home), self.service.files
        )
        self.splits = NodeSplits(
            home,
            node,
            mesh,
            self.service,
            serve,
            self._index,
            name=name,
            givers=self._file_givers,
            hosts=self.directory.reachable,
            say=say,
        )
        self.directory.on_change(self.splits.spreader.hosts_changed)
        self.metrics.also(self.splits.families)
        self._blobs = BlobService(self._index)
        self._publisher = Publisher(mesh.publish, self._offer, lambda: len(mesh.peers()) + 1)
        self._listen_to_the_mesh(options.serve)

    def _unready(self, model: str) -> Unready | None:
        return find_unready(self.service.runs, model)

    async def _spread(self, run: ModelRun, flags: SplitFlags) -> None:
        await self.splits.spreader.follow(run, flags)  # which is made after the service, whose memory it counts

    def _listen_to_the_mesh(self, serve: ServeOptions) -> None:
        mesh, directory = self._mesh, self.directory
        mesh.watch(directory.on_records, directory.on_dropped)
        mesh.watch(self._on_records, self._on_dropped)
        mesh.watch_peers(self._on_peer_state)
        mesh.serve(StreamKind.HTTP, self.api.serve_peer)
        if not serve.client:
            mesh.serve(StreamKind.BLOB, self._serve_blob)
        self.service.on_change(self._own_models_changed)

    # ------------------------------------------------------------------ life

    async def start(self, bound: socket.socket) -> None:
        """Answer on `bound`, and begin with the models that were asked for; they become ready later."""
        known = await self._mesh.stored(NODE_KIND)
        await self.directory.on_records(known)
        await self._on_records(known)
        await self.api.listen(bound)
        await self.splits.start()
        await self.service.start()
        self._tasks.spawn(self._describe(), name="describe")
        self._publisher.start()

    async def stop(self) -> None:
        """Take back what was offered, end answers, then engines. Nothing of them is left when this returns.

        A client that takes nothing in, or a mesh that does not answer, holds up no engine's end: the node itself has little time.
        """
        doors = TaskSet("model doors")
        closing = (
            doors.spawn(self._publisher.stop(), name="take back"),
            doors.spawn(self.api.close(DRAIN_S), name="close"),
        )
        await asyncio.wait(closing, timeout=DRAIN_S + DOORS_MARGIN_S)
        await self.service.stop(ENGINE_GRACE_S)
        await self.splits.stop(ENGINE_GRACE_S)
        await doors.close(DOORS_MARGIN_S)
        await self._tasks.close()
        await self._blobs.close()

    @property
    def is_used(self) -> bool:
        """Whether ending the node would take something from somebody: models that are served, memory that is lent, answers in progress."""
        return (
            bool(self.service.files()) or bool(self.service.offers()) or self.splits.is_used or self.api.exchanges > 0
        )

    # ------------------------------------------------------------------ what is told

    def _own_models_changed(self) -> None:
        self._look.set()
        self.directory.set_own(self.service.targets())
        self._publisher.changed()

    def _offer(self) -> NodeOffer:
        models = self.service.offers()
        return NodeOffer(
            version=OFFER_VERSION,
            program=agentmesh.__version__,
            engine=self._engine_name,
            memory_bytes=0,  # nobody plans with it before models are split
            models=models,
            has_files=self._has_files and bool(self.service.files()),
            addresses=self._mesh.addresses(),
            bulk_port=self._mesh.bulk_port,
        )

    async def _describe(self) -> None:
        """Keep what the offer says of this machine true."""
        while True:
            if self.service.files():
                engine = await self.service.engine()
                self._engine_name = f"{engine.flavor} {engine.build or ''} {engine.commit}".strip() if engine else ""
                has_files = await self._index.has_files()
                if has_files != self._has_files:
                    self._has_files = has_files
                    self._publisher.changed()
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FILES_LOOK_S):
                    await self._look.wait()

    # ------------------------------------------------------------------ what others tell

    async def _on_records(self, records: Sequence[Record]) -> None:
        """Where serving nodes are, and who of them gives files."""
        for record in records:
            if record.kind != NODE_KIND or record.author == self.directory.me:
                continue
            offer = decode_offer(record.payload)
            self._givers.pop(record.author, None)
            if offer is None:
                continue
            if offer.has_files:
                self._givers[record.author] = record.id
            if offer.addresses:
                self._mesh.hint(record.author, offer.addresses, offer.bulk_port)

    async def _on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        gone = {*ids}
        for node in [node for node, record_id in self._givers.items() if record_id in gone]:
            del self._givers[node]

    def _on_peer_state(self, node: bytes, state: PeerState) -> None:
        self.directory.on_peer_state(node, state)
        self.splits.offers.on_peer_state(node, state)
        if state is not PeerState.ALIVE:
            self.api.peer_lost(node)

    # ------------------------------------------------------------------ files

    def _file_givers(self) -> list[bytes]:
        """Members that give files, the nearest connected ones first."""
        rtt_ms = {peer.node: peer.rtt_ms for peer in self._mesh.peers() if peer.rtt_ms is not None}
        return sorted(self._givers, key=lambda node: rtt_ms.get(node, float("inf")))

    async def _open_blob(self, node: bytes) -> Stream:
        return await self._mesh.open_stream(node, StreamKind.BLOB)

    async def _serve_blob(self, peer: bytes, stream: Stream) -> None:
        """A node that serves no models gives no files either: its user asked for a blackboard."""
        if not self.service.files():
            stream.abort()
            return
        await self._blobs.serve(peer, stream)


def _serve_settings(options: ServeOptions, *, again: bool) -> ServeSettings:
    return ServeSettings(
        models=options.models,
        ggufs=options.ggufs,
        context_tokens=options.context_tokens,
        max_vram_bytes=options.max_vram_bytes,
        device=options.device,
        bin_dir=options.bin_dir,
        llama_flavor=options.llama_flavor,
        again=again,
        no_engine=options.client,
        lending=Lending(
            options.lends_to_all, options.lends_to, Weights.STREAM if options.streams_weights else Weights.FETCH
        ),
        split=msgspec.convert(options.split, SplitFlags) if options.split is not None else None,
        draft=DraftFlags(**options.draft) if options.draft is not None else None,
    )
