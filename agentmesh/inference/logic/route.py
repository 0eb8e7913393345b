"""Which host of a model gets a request.

Owns the rule, and what is known of each host: requests in flight, its breaker, and how long it said to be busy. Hosts that
are suspect, dead, not ready or were tried are out. The least in flight for its slots wins; this node on ties while it has a
free slot. A host that failed lately comes after those that did not, however idle it looks. Of a model that some hosts have parts
of only, the whole one wins while it has a free slot, then the part that the request's session belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TypeAlias

from agentmesh.inference.logic.breaker import Breaker
from agentmesh.inference.logic.expert_sessions import order_of_session
from agentmesh.inference.logic.route_limits import EXTRA_IN_FLIGHT, EXTRA_PER_SLOTS, MAX_CONSIDERED, MAX_SHARD_HOSTS
from agentmesh.inference.logic.target import ServedModel, Target

Key: TypeAlias = tuple[bytes, str]
Rank: TypeAlias = tuple[int, bool, bool, float, int]


@dataclass(slots=True)
class Place:
    """What this proxy knows of one host of one model.

    Attributes:
        in_flight: requests that it was given and that did not end.
        busy_until_s: when it may be asked again after it said that it is busy; 0 if that is not the last it said.
        breaker: whether it may be asked at all.
        is_gone: nobody offers it any more; it is forgotten once nothing runs there.
    """

    in_flight: int = 0
    busy_until_s: float = 0.0
    breaker: Breaker = field(default_factory=Breaker)
    is_gone: bool = False


class Verdict(StrEnum):
    """What a decision came to."""

    ROOM = "room"
    FULL = "full"  # somebody can answer, later
    NOBODY = "nobody"


@dataclass(slots=True)
class Choice:
    """A decision. The counts say why hosts were left out; `soonest_s` when the first back-off among them ends."""

    verdict: Verdict = Verdict.NOBODY
    target: Target | None = None
    load: float = 0.0
    tried: int = 0
    broken: int = 0
    away: int = 0
    loading: int = 0
    soonest_s: float = 0.0


def most_in_flight(model: ServedModel) -> int:
    """Requests that one host is given at once."""
    return model.slots + EXTRA_IN_FLIGHT + model.slots // EXTRA_PER_SLOTS


def choose(
    targets: Sequence[Target],
    places: Mapping[Key, Place],
    *,
    now_s: float,
    out: Collection[bytes] = (),
    avoid: Collection[Key] = (),
    own_only: bool = False,
    tokens: int = 0,
    session: bytes = b"",
) -> Choice:
    """Decide among the hosts of one model, in the order in which ties are broken.

    Args:
        out: peers that are suspect or dead.
        avoid: hosts that this request was tried at; one that was only busy may be among them, and is waited for.
        own_only: peers are not asked.
        tokens: about how many the request has; hosts with a shorter context come later. 0: unknown.
        session: of a model some of whose hosts are shards: each session has its own order of these. Empty: as other models.
    """
    choice = Choice()
    last_resort: list[Target] = []
    best: Rank | None = None
    considered = full = 0
    for position, target in enumerate(in_order_of(session, targets) if session else targets):
        if own_only and target.engine is None:
            continue
        key = target.key
        place = places.get(key) or _UNUSED
        if not _is_possible(target, key, place, choice, now_s, out, avoid, last_resort):
            continue
        considered += 1
        if considered > MAX_CONSIDERED:
            break
        if not _has_room(target, place, now_s):
            full += 1
            continue
        rank = _rank(target, place, now_s, is_retry=bool(avoid), tokens=tokens)
        load = rank[3]
        if session:
            rank = _rank_for_session(rank, target, position)
        if best is None or rank < best:
            best, choice.target, choice.load = rank, target, load
    if not considered and last_resort:
        return _last_resort(last_resort, places, choice, now_s)
    if choice.target is not None:
        choice.verdict = Verdict.ROOM
    elif full:
        choice.verdict = Verdict.FULL
    return choice


def in_order_of(session: bytes, targets: Sequence[Target]) -> list[Target]:
    """The hosts that have the whole model, then the shards in this session's order; bounded, so that one decision is."""
    whole = [target for target in targets if not target.model.shard][: MAX_CONSIDERED // 2]
    shards = {t.node.hex(): t for t in islice((t for t in targets if t.model.shard), MAX_SHARD_HOSTS)}
    return [*whole, *(shards[node] for node in order_of_session(session, shards))]


def _rank_for_session(rank: Rank, target: Target, position: int) -> Rank:
    """A whole model with a free slot, whose answers are better; then the session's shard, and the next ones in its order while
    that one has no room; then a whole model where one waits, or that failed lately. A second try is never the probe."""
    probe, is_shaky, is_short, load, nearness = rank
    if target.model.shard:
        return (3 if probe > 0 else 1, False, is_short, float(position), 0)
    if probe < 0:
        return rank  # else it would never be found out that it is back
    is_best = load < 1 and not is_shaky and not is_short
    return (3 if probe > 0 else 0 if is_best else 2, is_shaky, is_short, load, nearness)


_UNUSED = Place()  # read only: a host that was never asked


def _is_possible(
    target: Target,
    key: Key,
    place: Place,
    choice: Choice,
    now_s: float,
    out: Collection[bytes],
    avoid: Collection[Key],
    last_resort: list[Target],
) -> bool:
    """Whether it may be asked at all; else it is counted in `choice`."""
    if not target.model.ready:
        choice.loading += 1
    elif target.engine is None and target.node in out:
        choice.away += 1
    elif key in avoid and not place.busy_until_s:  # who was only busy may be asked again, later
        choice.tried += 1
    elif not place.breaker.admits(now_s):
        choice.broken += 1
        until_s = place.breaker.open_until_s()
        choice.soonest_s = min(choice.soonest_s or until_s, until_s)
        if place.breaker.answers_at_all():
            last_resort.append(target)
    else:
        return True
    return False


def _has_room(target: Target, place: Place, now_s: float) -> bool:
    return place.in_flight < most_in_flight(target.model) and place.busy_until_s <= now_s


def _rank(target: Target, place: Place, now_s: float, *, is_retry: bool, tokens: int) -> Rank:
    """Lower is better. A probe comes first, since else an idle mesh would never find out that a host is back; but never
    as a second try, when the client has waited already."""
    due = place.breaker.is_due(now_s)
    load = place.in_flight / target.model.slots
    nearness = 1 if target.engine is None else 0 if load < 1 else 2
    return (
        (1 if is_retry else -1) if due else 0,
        place.breaker.is_shaky(now_s),
        0 < target.model.context_tokens < tokens,
        load,
        nearness,
    )


def _last_resort(targets: Sequence[Target], places: Mapping[Key, Place], choice: Choice, now_s: float) -> Choice:
    """All that is left answered with 5xx lately: the one with the least in flight."""
    free = [target for target in targets if _has_room(target, places[target.key], now_s)]
    choice.verdict = Verdict.ROOM if free else Verdict.FULL
    if free:
        choice.target = min(free, key=lambda t: places[t.key].in_flight / t.model.slots)
        choice.load = places[choice.target.key].in_flight / choice.target.model.slots
    return choice
