"""What nodes say of themselves for models bigger than one machine: this node's own record, and what the others' records say.

    offers = SplitOffers(me, mesh.publish, mesh.peer_states, measure, trips, lending, name, node_count, is_client=False)
    mesh.watch(offers.on_records, offers.on_dropped)                  # before the mesh starts
    await offers.on_records(await mesh.stored("split")); await offers.start()
    offers.want(WantedModel(content, id, wish, claim)); offers.nodes(content); await offers.stop()

Owns both. A figure of this machine counts from when it was measured, together with what was held then; a claim at once. Plans nothing.
Owner: the event loop. docs/splits.md, "What nodes say".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.split_limits import MAX_PUBLISHED_RTTS
from agentmesh.inference.logic.split_offer import (
    SplitOffer,
    WantedModel,
    WorkedModel,
    claimed_term,
    decode_split_offer,
    encode_split_offer,
    facts_of,
    says_something,
)
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, NodeFacts, Wish, short_id_text
from agentmesh.inference.logic.terms import highest_term
from agentmesh.inference.presence import Publish
from agentmesh.inference.settings import Lending
from agentmesh.inference.split.facts import Measured, steady, with_held
from agentmesh.inference.split.heard import HeardOffers, KnownFacts
from agentmesh.inference.split.paced import Paced
from agentmesh.inference.split.telling import Telling
from agentmesh.mesh.logic.events import PeerState
from agentmesh.mesh.logic.kinds import SPLIT
from agentmesh.mesh.logic.record import Record

_log = logging.getLogger(__name__)

MAX_REMEMBERED_WORK: Final = 64  # terms of models that were served; a record has room for MAX_WORKED
MEASURE_EVERY_S: Final = 5.0

PeerStates = Callable[[], Mapping[bytes, PeerState]]
_EMPTY: Final = encode_split_offer(SplitOffer())


class Trips(Protocol):
    """Round trips; split/rtt.py: RoundTrips."""

    def follow(self, wanted: Callable[[], Sequence[bytes]], changed: Callable[[], None]) -> None: ...

    def start(self) -> None: ...

    def look(self) -> None: ...

    def is_lost(self, node: bytes) -> bool: ...

    def nearest(self) -> tuple[tuple[bytes, float], ...]: ...

    async def stop(self) -> None: ...


Held = tuple[tuple[str, int], ...]


class SplitOffers:
    """See the module. Implements parts.Tells.

    Args:
        me: this node's public key.
        measure: this machine now, raises AgentMeshError; split/facts.py: NodeMeasure.
        lending: to whom this node lends its memory.
        name: what this node calls itself.
        node_count: members of the mesh, as far as known.
        now_ms: a clock that only goes forward.
    """

    def __init__(
        self,
        me: bytes,
        publish: Publish,
        peer_states: PeerStates,
        measure: Callable[[], Awaitable[Measured]],
        rtts: Trips,
        lending: Lending,
        name: Callable[[], str],
        node_count: Callable[[], int],
        *,
        is_client: bool,
        now_ms: Callable[[], int] | None = None,
        unix_ms: Callable[[], int] | None = None,
    ) -> None:
        self._me = me
        self._unix_ms = unix_ms or (lambda: time.time_ns() // 1_000_000)
        self._peer_states = peer_states
        self._measure = measure
        self._rtts = rtts
        self._lending = lending
        self._name = name
        self._is_client = is_client
        self._tasks = TaskSet("split offers")
        self._woken = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._wants: dict[str, WantedModel] = {}
        self._works: dict[str, WorkedModel] = {}
        self._measured: Measured | None = None  # as published
        self._unheld: Measured | None = None  # the same, if nothing were held
        self._held: dict[str, tuple[Held, Held]] = {}  # by content, wanted and worked, when that was measured
        self._own: SplitOffer | None = None  # as others read it; None: to be put together
        self._heard = HeardOffers()
        self._facts = KnownFacts()
        self._there: set[bytes] = set()  # who counted, when it was looked at last
        self._complained = ""
        self._was_tried = False  # to measure this machine
        self.telling = Telling(publish, self._payload, _EMPTY, node_count, now_ms or _loop_ms)
        self._others = Paced("what others say", self._others_changed, now_ms or _loop_ms)
        rtts.follow(self._of_use, self._own_changed)

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Begin to measure, and to tell once there is something to tell."""
        if self._is_client:
            return
        self.telling.start()
        self._rtts.start()
        self._tasks.spawn(self._keep_measured(), name="measure")

    async def stop(self) -> None:
        """Take back what was said, if that is quickly done."""
        await self._tasks.close()
        await self._others.stop()
        await self._rtts.stop()
        await self.telling.stop()

    @property
    def rpc_version(self) -> tuple[int, int, int]:
        """Of this node's RPC server; zeros while unknown."""
        return self._measured.rpc_version if self._measured is not None else NO_RPC_VERSION

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call this after every change of what `nodes` would answer. It must not raise."""
        self._listeners.append(listener)

    # ------------------------------------------------------------------ what this node says

    def want(self, model: WantedModel) -> None:
        """Say, or say anew, that this node wants the model of `model.content` spread. Promise what it holds before."""
        before = self._wants.get(model.content)
        if before == model:
            return
        self._wants[model.content] = model
        urgent = (before.claim if before is not None else None) != model.claim
        self._own_changed(urgent=urgent, measure=before is None or before.held != model.held)

    def unwant(self, content: str) -> None:
        """It does not any more."""
        if (before := self._wants.pop(content, None)) is not None:
            self._own_changed(urgent=before.claim is not None, measure=bool(before.held))

    def work(self, model: WorkedModel) -> None:
        """Say, or say anew, what this node serves of a model for a host, or the highest term that it served."""
        before = self._works.get(model.content)
        if before == model:
            return
        self._works.pop(model.content, None)  # the latest comes last
        self._works[model.content] = model
        while len(self._works) > MAX_REMEMBERED_WORK and (idle := self._idle_work()) is not None:
            del self._works[idle]
        self._own_changed(measure=before is None or before.held != model.held)

    def _idle_work(self) -> str | None:
        return next((content for content, model in self._works.items() if not model.held), None)

    @property
    def _says_something(self) -> bool:
        return not self._is_client and (self._lending.is_any or bool(self._wants) or bool(self._works))

    def _payload(self) -> bytes | None:
        """What the record says; None: nothing. Before the first measurement there is nothing to say."""
        if not self._says_something or self._measured is None:
            return None
        return encode_split_offer(self._offer(self._measured))

    def _offer(self, measured: Measured) -> SplitOffer:
        lending = self._lending
        return SplitOffer(
            name=self._name(),
            devices=measured.devices,
            machine_free_bytes=measured.machine_free_bytes,
            machine_total_bytes=measured.machine_total_bytes,
            rtt_ms=self._rtts.nearest(),
            engine_commit=measured.engine_commit,
            rpc_version=measured.rpc_version,
            has_rpc=measured.has_rpc,
            lends_to=tuple(sorted(lending.peers)[:MAX_PUBLISHED_RTTS]),
            lends_to_all=lending.everyone,
            wants=tuple(msgspec.structs.replace(m, held=self._held_then(m.content)[0]) for m in self._wants.values()),
            works=tuple(
                msgspec.structs.replace(m, held=self._held_then(m.content)[1]) for m in self._works_by_weight()
            ),
        )

    def _works_by_weight(self) -> list[WorkedModel]:
        """Those that take memory first, then the latest."""
        latest = [*reversed(self._works.values())]
        return [model for model in latest if model.held] + [model for model in latest if not model.held]

    def _held_then(self, content: str) -> tuple[Held, Held]:
        return self._held.get(content, ((), ()))

    def _own_offer(self) -> SplitOffer:
        """As others read it, so that all plan with the same."""
        if self._own is None:
            self._own = decode_split_offer(encode_split_offer(self._offer(self._measured or Measured())))
        return self._own or SplitOffer()

    def _own_changed(self, *, urgent: bool = False, measure: bool = False) -> None:
        self._own = None
        if measure:
            self._woken.set()
        self._rtts.look()
        self.telling.changed(urgent=urgent)
        self._notify()

    # ------------------------------------------------------------------ this machine

    async def _keep_measured(self) -> None:
        while True:
            self._woken.clear()
            if self._says_something:
                try:
                    await self.measure_now()
                except Exception:  # noqa: BLE001 - the root of a task; memory would never be measured again
                    _log.exception("this machine could not be measured for splits")
            try:
                async with asyncio.timeout(MEASURE_EVERY_S if self._says_something else None):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def measure_now(self) -> None:
        """Measure once. What cannot be measured stays as it was."""
        try:
            now = await self._measure()
        except AgentMeshError as error:
            if error.message != self._complained:
                _log.warning("This machine's memory for splits is not known: %s", error.message)
            self._complained = error.message
            if not self._was_tried:
                self._was_tried = True
                self._notify()
            return
        # Nothing was awaited since: what is held now is missing from what was measured.
        held = {
            content: (
                self._wants[content].held if content in self._wants else (),
                self._works[content].held if content in self._works else (),
            )
            for content in (*self._wants, *self._works)
        }
        # Steady is what would be free without them, so that a split's own start changes nothing of what it was planned with.
        taken = Counter[str]()
        for place, count in (pair for both in held.values() for one in both for pair in one):
            taken[place] += count
        self._unheld = steady(self._unheld, with_held(now, taken))
        measured = with_held(self._unheld, taken, -1)
        self._complained = ""
        if measured != self._measured or held != self._held:
            self._measured, self._held, self._was_tried = measured, held, True
            self._own_changed()

    # ------------------------------------------------------------------ what others say

    async def on_records(self, records: Sequence[Record]) -> None:
        """Records were stored; those of kind `split` matter."""
        changes = [self._hear(record) for record in records if record.kind == SPLIT.name]
        if any(changes):
            self._others.soon()

    async def on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        """Records expired, were replaced, or their authors are out."""
        if self._heard.drop(ids):
            self._others.soon()

    def on_peer_state(self, node: bytes, state: PeerState) -> None:
        """A peer came or went."""
        if self._heard.has(node):
            self._others.soon()

    def _hear(self, record: Record) -> bool:
        """Whether anything changed."""
        if record.author != self._me:
            return self._heard.hear(record)
        offer = decode_split_offer(record.payload)
        if offer is None or says_something(offer):
            self.telling.found(record.payload)
        return False

    def _others_changed(self) -> None:
        self._rtts.look()
        self._notify()

    def _notify(self) -> None:
        there = {node for node, _ in self._counting()}
        if there - self._there and any(model.claim is not None for model in self._wants.values()):
            self.telling.again()  # who was away has missed who hosts, and would begin to host, too
        self._there = there
        for listener in self._listeners:
            listener()

    def _counting(self) -> list[tuple[bytes, SplitOffer]]:
        """Those that count."""
        return [(node, offer) for node, offer in self._alive() if not self._rtts.is_lost(node)]

    def _alive(self) -> list[tuple[bytes, SplitOffer]]:
        """Those that are not suspect or dead."""
        states = self._peer_states()
        return [
            (node, offer)
            for node, offer in self._heard.offers()
            if states.get(node, PeerState.ALIVE) is PeerState.ALIVE
        ]

    def _of_use(self) -> list[bytes]:
        """To whom the round trip matters: one of the two may host, and the other lends to it."""
        lending, wants = self._lending, bool(self._wants)
        return [
            node
            for node, offer in self._alive()
            if (wants and (offer.lends_to_all or self._me in offer.lends_to)) or (offer.wants and lending.may_use(node))
        ]

    # ------------------------------------------------------------------ questions

    def nodes(self, content: str) -> tuple[NodeFacts, ...]:
        """Every node that says something and is there, this one included if it does, with its claim of this moment. Before it was
        measured for the first time it is not: it would plan without its memory, and say what is not true."""
        own: list[NodeFacts] = []
        if self._was_tried and (self._lending.is_any or content in self._wants):
            own = [facts_of(self._own_offer(), self._me, content, is_client=self._is_client)]
        return (*own, *self._facts.of(content, self._counting(), highest_term(self._unix_ms())))

    def claimed(self, node: bytes, content: str) -> int:
        """The term with which another node says that it hosts the model; 0: it does not say so, or cannot."""
        wanted = [
            model
            for author, offer in self._counting()
            if author == node
            for model in offer.wants
            if model.content == content
        ]
        term = claimed_term(wanted[0]) if wanted else 0
        return term if term <= highest_term(self._unix_ms()) else 0

    def wishes(self, content: str) -> dict[bytes, Wish]:
        """What each node that wants the model wishes for it."""
        said = {
            node: model.wish for node, offer in self._counting() for model in offer.wants if model.content == content
        }
        if content in self._wants:
            said[self._me] = self._wants[content].wish
        return said

    def same_name(self, model_id: str, content: str) -> list[str]:
        """A sentence for each node that wants another content under this id."""
        wanted = model_id.lower()
        names = sorted(
            f"{NodeFacts(node, name=offer.name).shown} ({short_id_text(node)})"
            for node, offer in self._counting()
            if any(model.id.lower() == wanted and model.content != content for model in offer.wants)
        )
        return [
            f"{name} has other files under the name {model_id}; only equal files are split together." for name in names
        ]


def _loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
