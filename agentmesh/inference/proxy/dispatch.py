"""Gives requests their places at targets, in order of arrival, and takes the places back.

State: what is known of each target (`Place`), and the queues. Owner: the event loop; docs/routing.md names every event.
Decisions are logic/route.py's and logic/auto.py's. Nothing here waits for a peer or does I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentmesh.inference.logic.auto import AUTO, is_auto, suitable, tokens_estimate
from agentmesh.inference.logic.breaker import Phase
from agentmesh.inference.logic.route import Choice, Place, Verdict, choose, most_in_flight
from agentmesh.inference.logic.route_limits import BUSY_DEFAULT_S, BUSY_MAX_S, MAX_WAIT_S
from agentmesh.inference.logic.target import EngineAddress, ServedModel, Target
from agentmesh.inference.proxy.directory import Directory
from agentmesh.inference.proxy.lease import HeldLease, Waiter
from agentmesh.inference.proxy.metrics import Gauges, Metrics
from agentmesh.inference.proxy.ports import Outcome, TargetKey, Wanted
from agentmesh.inference.proxy.queues import CallLater, Queues
from agentmesh.inference.proxy.refusals import (
    busy_here,
    nobody_can,
    not_ready_here,
    not_served_here,
    queue_full,
    unknown_model,
    unsuitable,
    waited_too_long,
)
from agentmesh.inference.serving_types import Unready

_REACHED_FAILURES = frozenset({Outcome.FAILED, Outcome.BROKEN})


class Dispatcher:
    """Implements ports.Dispatch.

    Args:
        now_s: a monotonic clock, the loop's.
        call_later: the loop's; runs while somebody waits.
        here: what was asked for on this node by a name and does not answer; asked only when nobody can.
    """

    def __init__(
        self,
        directory: Directory,
        metrics: Metrics,
        now_s: Callable[[], float],
        call_later: CallLater,
        here: Callable[[str], Unready | None] = lambda _name: None,
    ) -> None:
        self._here = here
        self._directory = directory
        self._metrics = metrics
        self._now_s = now_s
        self._places: dict[TargetKey, Place] = {}
        self._seen: dict[TargetKey, tuple[bool, EngineAddress | None]] = {}
        self._lone: dict[str, tuple[Target, Place, int]] = {}  # see _give_lone
        self._mean_s: dict[str, float] = {}  # of whole requests, by model
        self._queues = Queues(self._retry, now_s, call_later)
        self._sharded = directory.sharded()
        directory.on_change(self._directory_changed)
        metrics.watch(self._gauges)

    # ------------------------------------------------------------------ ports.Dispatch

    def try_acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> HeldLease | None:
        """See ports.Dispatch. Nobody overtakes a queue: while others wait for the model, this one would have to, too."""
        if not avoid and (lease := self._give_lone(wanted.model)) is not None:
            return lease
        ids = self._ids(wanted)
        choice = self._choose(ids, wanted, avoid)
        queue = _queue_of(wanted, ids)
        if choice.target is not None and not self._queues.length(queue):
            self._remember_lone(wanted.model, choice.target)
            return self._begin(choice.target)
        if wanted.local_only:
            raise busy_here(wanted.model)
        if self._queues.is_full(queue):
            slots = sum(target.model.slots for target in self._directory.targets(ids[0]) if target.model.ready)
            raise queue_full(wanted.model, self._queues.length(queue), self._mean_s.get(ids[0], 1.0), max(1, slots))
        return None

    async def acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> HeldLease:
        """See ports.Dispatch."""
        lease = self.try_acquire(wanted, avoid)
        if lease is not None:
            return lease
        self._metrics.routed("queued")
        queue = _queue_of(wanted, self._ids(wanted))
        waiter = self._queues.join(queue, wanted, avoid, self._now_s() + MAX_WAIT_S)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            # The place may have been given in the same turn of the loop in which the client left.
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                waiter.future.result().release(Outcome.CANCELLED)
            raise
        finally:
            self._queues.leave(waiter)

    def by_session(self, model: str) -> bool:
        """See ports.Dispatch. Asked for each request: without shards in the mesh it must cost nothing."""
        if not self._sharded:
            return False
        return is_auto(model) or any(id_ in self._sharded for id_ in self._directory.resolve(model))

    def models(self) -> Sequence[tuple[ServedModel, Sequence[bytes]]]:
        """See ports.Dispatch."""
        return self._directory.models()

    def queue_lengths(self) -> dict[str, int]:
        """How many wait, by model; those for `auto` together."""
        return self._queues.lengths()

    # ------------------------------------------------------------------ deciding

    def _ids(self, wanted: Wanted) -> tuple[str, ...]:
        """The models that will do, best first. Raises: Refused."""
        ids = self._directory.resolve(wanted.model)
        if wanted.local_only or is_auto(
            wanted.model
        ):  # a peer that calls a model `auto` does not get what is asked of it
            ids = tuple(id_ for id_ in ids if self._directory.target((self._directory.me, id_)) is not None)
        if wanted.local_only and not ids:
            raise not_served_here(wanted.model)
        if ids:
            return ids
        described = [model for model, _ in self._directory.models()]
        if not is_auto(wanted.model) or not described:
            if (here := self._here(wanted.model)) is not None:
                raise not_ready_here(wanted.model, here)
            raise unknown_model(wanted.model, described)
        ids = suitable(described, wanted.path, wanted.needs, wanted.body_bytes)
        if not ids:
            raise unsuitable(wanted, described)
        return ids

    def _choose(self, ids: Sequence[str], wanted: Wanted, avoid: frozenset[TargetKey]) -> Choice:
        """A target with room, or the news that all who can are full. Raises: Refused if nobody can answer now."""
        now_s, out = self._now_s(), self._directory.out()
        tokens = tokens_estimate(wanted.body_bytes, wanted.needs)
        only_first = not is_auto(wanted.model)
        first: Choice | None = None
        nobody: Choice | None = None
        for model_id in ids:
            choice = choose(
                self._directory.targets(model_id),
                self._places,
                now_s=now_s,
                out=out,
                avoid=avoid,
                own_only=wanted.local_only,
                tokens=tokens,
                session=wanted.session if model_id in self._sharded else b"",
            )
            if choice.verdict is Verdict.NOBODY:
                nobody = nobody or choice
                continue
            if choice.target is not None and (only_first or choice.load < 1):
                return choice
            if first is None or (first.target is None and choice.target is not None):
                first = choice
            if only_first:
                break
        if first is None:
            # A peer hears what it heard already: this node's record says so much. And `auto` means no model of this node.
            here = None if wanted.local_only or is_auto(wanted.model) else self._here(wanted.model)
            raise nobody_can(wanted.model, nobody or Choice(), now_s, self._waits(ids), here)
        return first

    def _waits(self, ids: Sequence[str]) -> str:
        """What these models wait for, in the words of their first host; empty if one is being loaded."""
        waits = [target.model.waits for id_ in ids for target in self._directory.targets(id_)]
        return waits[0] if waits and all(waits) else ""

    def _give_lone(self, model_id: str) -> HeldLease | None:
        """A place at the only host of a model, an engine of this node that nothing speaks against; None: decide in full.

        That is the usual case, where the whole decision took 4 us to come to the same. What is remembered holds until the
        directory changes.
        """
        lone = self._lone.get(model_id)
        if lone is None:
            return None
        target, place, most = lone
        now_s = self._now_s()
        if place.in_flight >= most or place.busy_until_s > now_s or place.breaker.is_open or self._queues.count:
            return None
        return self._give(target, place, now_s)

    def _remember_lone(self, name: str, target: Target) -> None:
        """Only by its exact id: what else clients call it has no bound."""
        if name == target.model.id and target.engine is not None and self._directory.targets(name) == (target,):
            self._lone[name] = (target, self._place(target), most_in_flight(target.model))

    def _place(self, target: Target) -> Place:
        place = self._places.get(target.key)
        if place is None:
            place = self._places[target.key] = Place()
            self._seen[target.key] = (target.model.ready, target.engine)
        return place

    def _begin(self, target: Target) -> HeldLease:
        return self._give(target, self._place(target), self._now_s())

    def _give(self, target: Target, place: Place, now_s: float) -> HeldLease:
        place.in_flight += 1
        self._metrics.routed("peer" if target.engine is None else "local")
        return HeldLease(target, place, place.breaker.begin(now_s), now_s, self._reached, self._released)

    # ------------------------------------------------------------------ what leases tell

    def _reached(self, lease: HeldLease) -> None:
        lease.place.breaker.reached(lease.ticket, self._now_s())

    def _released(self, lease: HeldLease, outcome: Outcome, retry_after_s: float | None) -> None:
        place, now_s = lease.place, self._now_s()
        place.in_flight -= 1
        breaker = place.breaker
        if outcome is Outcome.ANSWERED:
            breaker.succeeded(lease.ticket)
            place.busy_until_s = min(place.busy_until_s, now_s)  # a slot of it is free again
            self._took(lease.target.model.id, now_s - lease.began_s)
        elif outcome is Outcome.BUSY:
            breaker.reached(lease.ticket, now_s)
            breaker.undecided(lease.ticket)
            place.busy_until_s = now_s + min(retry_after_s or BUSY_DEFAULT_S, BUSY_MAX_S)
        elif outcome is Outcome.CANCELLED:
            breaker.undecided(lease.ticket)
        else:
            place.busy_until_s = 0.0
            breaker.failed(lease.ticket, now_s, reached=outcome in _REACHED_FAILURES)
        if place.is_gone:
            self._drop_unused(lease.target.key)
            self._forget_means()
        if self._queues.count:
            self._queues.serve()

    def _took(self, model_id: str, seconds: float) -> None:
        before = self._mean_s.get(model_id, seconds)
        self._mean_s[model_id] = before + (seconds - before) / 8

    # ------------------------------------------------------------------ changes around

    def _directory_changed(self) -> None:
        self._lone.clear()
        for key in list(self._places):
            target = self._directory.target(key)
            self._places[key].is_gone = target is None
            if target is None:
                self._drop_unused(key)
                continue
            before, self._seen[key] = self._seen[key], (target.model.ready, target.engine)
            if (target.model.ready and not before[0]) or target.engine != before[1]:
                place = self._places[key]
                place.breaker.start_anew()
                place.busy_until_s = min(place.busy_until_s, self._now_s())  # who found it busy may ask it again
        self._forget_means()
        self._queues.serve()

    def _forget_means(self) -> None:
        """Of models that nobody offers any more."""
        for model_id in [id_ for id_ in self._mean_s if not self._directory.targets(id_)]:
            del self._mean_s[model_id]

    def _drop_unused(self, key: TargetKey) -> None:
        """Forget a target that is gone, once nothing runs there."""
        if not self._places[key].in_flight and self._directory.target(key) is None:
            del self._places[key], self._seen[key]

    def _retry(self, waiter: Waiter) -> HeldLease | None:
        """A place for one that waits, if there is one now. Raises: Refused if it should not wait on."""
        ids = self._ids(waiter.wanted)
        choice = self._choose(ids, waiter.wanted, waiter.avoid)
        if choice.target is not None:
            return self._begin(choice.target)
        if self._now_s() >= waiter.deadline_s:
            raise waited_too_long(waiter.wanted.model, MAX_WAIT_S)
        return None

    def _gauges(self) -> Gauges:
        now_s = self._now_s()
        breakers = {phase.value: 0 for phase in Phase}
        for place in self._places.values():
            breakers[place.breaker.phase(now_s).value] += 1
        out = self._directory.out()
        ready = {
            model.id: sum(t.model.ready and t.node not in out for t in self._directory.targets(model.id))
            for model, _ in self._directory.models()
        }
        return Gauges(waiting=self._queues.lengths(), breakers=breakers, ready_targets=ready)


def _queue_of(wanted: Wanted, ids: Sequence[str]) -> str:
    """A model's queue, or the one of all who leave the choice to the mesh."""
    return AUTO if is_auto(wanted.model) else ids[0]
