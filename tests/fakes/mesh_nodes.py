"""Meshes in one process: real driver, admission and gossip on a transport of the test's choice, records in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from agentmesh.core.clock import Clock, SystemClock
from agentmesh.core.errors import StorageError
from agentmesh.core.paths import Home
from agentmesh.core.units import DAY_MS, HOUR_MS
from agentmesh.mesh.api import Mesh, MeshSettings
from agentmesh.mesh.authority import found_mesh
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.joining import join_mesh, read_tokens
from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.kinds import KindRule, Register, mesh_rules
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.quic import QuicTransport
from agentmesh.mesh.tls import TlsTransport
from agentmesh.mesh.transport import Transport

TEXT = KindRule(name="text", max_payload_bytes=4_096, max_lifetime_ms=48 * HOUR_MS, register=Register.ID, quota=True)
RULES = mesh_rules(TEXT)
CLOCK = SystemClock()
EVENTUALLY_S = 60.0  # what comes by itself comes in milliseconds; what has to be repaired, within 30 s
PUSHED_S = 20.0  # for what is pushed, that is in milliseconds: below the 30 s of the repair that would hide a push that is lost


class LateClock:
    """The machine's wall clock, set forward by as much as a test says: what expires does so when the test is ready for it."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return CLOCK.now_ms() + self.ahead_ms


class MemoryStore:
    """A RecordStore that survives a node's restart, and can be told to fail."""

    def __init__(self) -> None:
        self.records: dict[bytes, Record] = {}
        self.tombstones: dict[bytes, Tombstone] = {}
        self.full = False

    async def add(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(0)
        if self.full:
            raise StorageError("The disk is full.")
        for record in records:
            self.records.setdefault(record.id, record)

    async def drop(self, ids: Sequence[bytes]) -> None:
        for id_ in ids:
            record = self.records.pop(id_, None)
            if record is not None and record.kind == TEXT.name:
                self.tombstones[id_] = Tombstone(record.author, record.timestamp_ms, id_)

    async def load(self, ids: Sequence[bytes]) -> list[SignedRecord]:
        return [self.records[id_].signed for id_ in ids if id_ in self.records]

    async def load_kind(self, kind: str) -> list[SignedRecord]:
        return [record.signed for record in self.records.values() if record.kind == kind]

    async def load_index(self) -> tuple[list[StoredEntry], list[Tombstone]]:
        entries = [
            StoredEntry(r.id, r.kind, r.author, r.subkey, r.timestamp_ms, r.expires_ms, r.size_bytes)
            for r in self.records.values()
        ]
        return entries, list(self.tombstones.values())


class TestNode:
    """One node: a home, a key, a store, and a mesh while it runs."""

    __test__ = False

    def __init__(
        self,
        root: Path,
        name: str,
        transport: Callable[[NodeKey], Transport] = QuicTransport,
        *,
        fast_path: bool = False,
        bind_host: str = "127.0.0.1",
        clock: Clock = CLOCK,
    ) -> None:
        self.home = Home(root / name)
        self.home.prepare()
        self.name = name
        self.key = NodeKey.load_or_create(self.home.identity_key)
        self.store = MemoryStore()
        self.mesh: Mesh
        self.delivered: list[bytes] = []
        self._transport = transport
        self._fast_path = fast_path
        self._bind_host = bind_host
        self._clock = clock

    def found(self, policy: Policy | None = None) -> TestNode:
        """Make this node the founder of a mesh."""
        self._membership, self._first = found_mesh(
            self.home, self.key, "test", policy or Policy(), self._clock.now_ms()
        )
        self._bootstrap = ()
        return self

    async def join(self, *tokens: str) -> TestNode:
        """Become a member by invites."""
        transport = self._transport(self.key)
        try:
            joined = await join_mesh(
                read_tokens(tokens, self._clock.now_ms()), self.home, self.key, transport, self._clock, self.name
            )
        finally:
            await transport.close()
        self._membership, self._first, self._bootstrap = joined.membership, joined.publish, joined.bootstrap
        return self

    async def start(self) -> TestNode:
        """Run, after `found` or `join`, or again after `stop`."""
        self.mesh = Mesh(
            key=self.key,
            membership=self._membership,
            transport=self._transport(self.key),
            store=self.store,
            rules=RULES,
            clock=self._clock,
            settings=MeshSettings(self.name, self._bind_host, 0),
            bulk=TlsTransport(self.key) if self._fast_path else None,
        )
        self.mesh.watch(self._on_records, self._on_dropped)
        self.before_start()
        await self.mesh.start(self._first, self._bootstrap)
        return self

    def before_start(self) -> None:
        """For tests that watch or serve more."""

    async def stop(self) -> None:
        """End cleanly; `start` begins with what this home remembers."""
        await self.mesh.stop()
        membership = MembershipFile.current(self.home)
        assert membership is not None
        self._membership, self._first, self._bootstrap = membership, (), ()

    async def token(self, uses: int | None = None, lifetime_ms: int = DAY_MS) -> str:
        return (await self.mesh.invite(lifetime_ms, uses)).token

    async def post(self, text: str) -> Record:
        return await self.mesh.publish(TEXT.name, b"", text.encode(), 48 * HOUR_MS)

    def texts(self) -> list[str]:
        """What this node holds, sorted."""
        return sorted(r.payload.decode() for r in self.store.records.values() if r.kind == TEXT.name)

    async def _on_records(self, records: Sequence[Record]) -> None:
        self.delivered += [record.id for record in records if record.kind == TEXT.name]

    async def _on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        pass


async def eventually(condition: Callable[[], bool], seconds: float = EVENTUALLY_S) -> None:
    """Wait until `condition`, at most `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came to be"
        await asyncio.sleep(0.02)
