"""Hosts, records and a clock for tests of routing: nothing runs, time is a number."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agentmesh.inference.logic.presence import NodeOffer, encode_offer
from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.dispatch import Dispatcher
from agentmesh.inference.proxy.lease import HeldLease
from agentmesh.inference.proxy.metrics import Metrics
from agentmesh.inference.proxy.ports import Refused, Wanted
from agentmesh.inference.serving_types import Unready
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.logic.record import Record, SignedRecord

ME = b"\x00" * 32


def peer(number: int) -> bytes:
    """A peer's id."""
    return bytes([number]) * 32


def model(
    id_: str = "tiny",
    *,
    ready: bool = True,
    slots: int = 1,
    aliases: tuple[str, ...] = (),
    context: int = 4096,
    can: tuple[str, ...] = ("chat", "completion", "tools"),
    parameters: int = 0,
    sha256: str = "",
    shard: str = "",
) -> ServedModel:
    return ServedModel(id_, aliases, ready, context, slots, can, parameters, 0, sha256, shard)


def own(served: ServedModel | None = None, port: int = 1) -> Target:
    """An engine of this node."""
    return Target(ME, served or model(), EngineAddress(port=port))


def at(number: int, served: ServedModel | None = None) -> Target:
    """A model of a peer."""
    return Target(peer(number), served or model())


def node_record(author: bytes, *models: ServedModel, timestamp_ms: int = 1, payload: bytes | None = None) -> Record:
    """What a node published, as the mesh hands it on."""
    body = payload if payload is not None else encode_offer(NodeOffer(1, "test", "b1", 0, models))
    id_ = hashlib.sha256(author + timestamp_ms.to_bytes(8) + body).digest()[:16]
    return Record(id_, "node", author, b"", timestamp_ms, timestamp_ms + 1, body, SignedRecord(b"", b""))


class Timer:
    """A call that is due at a time."""

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s = due_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Time:
    """A clock that moves when it is told to, and calls what is due."""

    now: float = 1000.0
    timers: list[Timer] = field(default_factory=list[Timer])

    def now_s(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, callback))
        return self.timers[-1]

    def waiting_timers(self) -> list[Timer]:
        self.timers = [timer for timer in self.timers if not timer.is_cancelled]
        return self.timers

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.waiting_timers() if timer.due_s <= end]:
            timer = min(due, key=lambda t: t.due_s)
            self.timers.remove(timer)
            self.now = max(self.now, timer.due_s)
            timer.callback()
        self.now = end


class World:
    """A dispatcher, its directory, and the means to change everything around them."""

    def __init__(self, *own_targets: Target) -> None:
        self.time = Time()
        self.states: dict[bytes, PeerState] = {}
        self.metrics = Metrics()
        self.directory = Directory(ME, lambda: self.states, self.time.now_s)
        self.unready: dict[
            str, Unready
        ] = {}  # what was asked for on this node and does not answer, by what requests call it
        time = self.time
        self.dispatcher = Dispatcher(self.directory, self.metrics, time.now_s, time.call_later, self.unready.get)
        if own_targets:
            self.directory.set_own(own_targets)
        self.stamp = 0

    async def offer(self, number: int, *models: ServedModel) -> Record:
        """Peer `number` publishes."""
        self.stamp += 1
        record = node_record(peer(number), *models, timestamp_ms=self.stamp)
        await self.directory.on_records([record])
        return record


# ---------------------------------------------------------------------- requests

CHAT = "/v1/chat/completions"


def want(
    name: str = "tiny",
    *,
    local_only: bool = False,
    path: str = CHAT,
    needs: frozenset[str] = frozenset(),
    session: bytes = b"",
) -> Wanted:
    return Wanted(name, path, needs, local_only=local_only, session=session)


def take(world: World, wanted: Wanted | None = None, avoid: frozenset[tuple[bytes, str]] = frozenset()) -> HeldLease:
    lease = world.dispatcher.try_acquire(wanted or want(), avoid)
    assert lease is not None
    return lease


def refusal(world: World, wanted: Wanted, avoid: frozenset[tuple[bytes, str]] = frozenset()) -> Refused:
    with pytest.raises(Refused) as caught:
        world.dispatcher.try_acquire(wanted, avoid)
    return caught.value


def fill(world: World) -> list[HeldLease]:
    leases = list[HeldLease]()
    while (lease := world.dispatcher.try_acquire(want())) is not None:
        leases.append(lease)
    return leases


async def ask(
    world: World, wanted: Wanted | None = None, **more: frozenset[tuple[bytes, str]]
) -> asyncio.Task[HeldLease]:
    """A request that is in the queue when this returns, unless it was answered at once."""
    task = asyncio.ensure_future(world.dispatcher.acquire(wanted or want(), **more))
    await asyncio.sleep(0)
    return task


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)
