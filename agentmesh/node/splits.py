"""The node's part in models bigger than one machine: which parts there are, how they hear of the mesh, and in which order they start
and stop.

Wires what nodes say (split/offers.py), lending (split/worker.py with the RPC exits) and models that are spread (split/spread.py).
Decides nothing. Owner: the event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client.core import Metric

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.inference.blob_index import BlobIndex
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineMissing
from agentmesh.inference.logic.split_values import short_id_text
from agentmesh.inference.logic.target import Target
from agentmesh.inference.rpc.exit import RpcExits
from agentmesh.inference.rpc.weights import WeightHashes
from agentmesh.inference.service import ModelService
from agentmesh.inference.settings import ServeSettings
from agentmesh.inference.split.facts import NodeMeasure
from agentmesh.inference.split.host import HostParts
from agentmesh.inference.split.metrics import Relayed, split_families
from agentmesh.inference.split.offers import SplitOffers
from agentmesh.inference.split.rtt import RoundTrips
from agentmesh.inference.split.shards import ShardMaker
from agentmesh.inference.split.spread import Spreader, SpreadParts
from agentmesh.inference.split.worker import SplitWorker, WorkStatus
from agentmesh.inference.split.worker_files import MeshWorkerFiles
from agentmesh.mesh.api import Mesh
from agentmesh.mesh.logic.kinds import SPLIT
from agentmesh.mesh.streams import StreamKind
from agentmesh.mesh.transport import Stream

_log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.", "[::1]", "::1")


class NodeSplits:
    """See the module. Made before the mesh starts; `start` after it, `stop` before it stops.

    Args:
        open_blob, givers: `blob` streams, and the members that give files.
        hosts: who can be reached and offers the model of that id, this node among them.
        say: told one line for the user.
    """

    def __init__(
        self,
        home: Home,
        node: bytes,
        mesh: Mesh,
        service: ModelService,
        settings: ServeSettings,
        index: BlobIndex,
        *,
        name: Callable[[], str],
        givers: Callable[[], Sequence[bytes]],
        hosts: Callable[[str], Iterable[Target]],
        say: Callable[[str], None],
    ) -> None:
        self._me = node
        self._mesh = mesh
        self._service = service
        self._settings = settings
        self._say = say
        self._own_name = name
        self._exits = RpcExits()
        trips = RoundTrips(mesh.peers, mesh.open_stream)
        measure = NodeMeasure(service.memory, service.engine, settings.device)
        self.offers = SplitOffers(
            node,
            mesh.publish,
            mesh.peer_states,
            measure,
            trips,
            settings.lending,
            name,
            lambda: len(mesh.peers()) + 1,
            is_client=settings.no_engine,
        )
        files = MeshWorkerFiles(home, index, service.identities, self._open_blob, givers)
        self._worker = SplitWorker(
            self._exits,
            self.offers,
            service.memory,
            self._find_engine,
            files,
            settings.lending,
            home,
            say,
            name_of=self._name_of,
            claimed=self.offers.claimed,
            rpc_version=self._rpc_version,
            device=settings.device,
        )
        host = HostParts(mesh.open_stream, self._name_of, self._is_near, service.identities, WeightHashes.of_home(home))
        shards = ShardMaker.of_home(home)
        parts = SpreadParts(host, service.memory, service.identities, shards, say, self._worker.make_way, hosts)
        self.spreader = Spreader(node, self.offers, parts)
        mesh.watch(self.offers.on_records, self.offers.on_dropped)
        if not settings.no_engine:
            mesh.serve(StreamKind.RPC, self._exits.serve)
            mesh.serve(StreamKind.JOB, self._worker.serve_job)

    async def start(self) -> None:
        """Begin to tell what this node lends and wants."""
        await self.offers.on_records(await self._mesh.stored(SPLIT.name))
        await self.offers.start()
        lending = self._settings.lending
        if lending.everyone:
            self._say(
                "Every member of the mesh may use this machine's memory for parts of models; --rpc-peers ID,… says who may."
            )
        if lending.is_any and (why := await self._cannot_lend()) is not None:
            self._say(f"Nothing can be lent: {why}")

    async def stop(self, grace_s: float) -> None:
        """End what was lent; models that are spread are the service's to end."""
        await self._worker.stop(grace_s)
        await self.offers.stop()

    # ------------------------------------------------------------------ what others ask

    def lent(self) -> list[WorkStatus]:
        """The parts of models that this node computes for hosts."""
        return self._worker.status()

    @property
    def is_used(self) -> bool:
        """Whether ending this node would take something from a host."""
        return self._settings.lending.is_any or bool(self._worker.status())

    def families(self) -> Iterable[Metric]:
        """For /metrics."""
        return split_families([*self._hosted(), *self._worked()])

    def _hosted(self) -> Iterable[Relayed]:
        for model_id, worker in self.spreader.workers():
            yield Relayed(
                "host",
                model_id,
                worker.name or self._name_of(worker.worker),
                worker.counts,
                worker.referenced_bytes,
                worker.overdue_s,
            )

    def _worked(self) -> Iterable[Relayed]:
        for work in self._worker.status():
            counters = work.counters
            if counters is not None:
                host = self._name_of(bytes.fromhex(work.host))
                yield Relayed(
                    "worker", work.model, host, counters.by_name(), counters.referenced_bytes, counters.overdue_s
                )

    # ------------------------------------------------------------------ inside

    async def _find_engine(self) -> Engine:
        engine = await self._service.engine()
        if engine is None:
            raise EngineMissing("There is no llama.cpp engine on this machine. Run: agentmesh engine install")
        return engine

    async def _cannot_lend(self) -> str | None:
        try:
            engine = await self._find_engine()
        except AgentMeshError as error:
            return error.message
        if engine.is_embedded:
            return "the embedded engine cannot share models with other nodes. Run: agentmesh engine install"
        if not engine.has_rpc:
            return f"the engine {engine.command[0]} has no RPC server beside it. Run: agentmesh engine install"
        return None

    def _rpc_version(self) -> tuple[int, int, int]:
        return self.offers.rpc_version

    def _name_of(self, node: bytes) -> str:
        return self._own_name() if node == self._me else self._mesh.name_of(node) or short_id_text(node)

    def _is_near(self, node: bytes) -> bool:
        address = next((peer.address for peer in self._mesh.peers() if peer.node == node), None)
        return address is not None and address.startswith(LOOPBACK)

    async def _open_blob(self, node: bytes) -> Stream:
        return await self._mesh.open_stream(node, StreamKind.BLOB)
