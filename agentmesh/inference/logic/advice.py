"""About how fast a plan will be, and which other way would be faster, in words.

    time of a token = bytes read / memory speed, added over all places, + workers x round trip

Owns these formulas and sentences. Places work one after another, each token reads all weights (of experts those that are used), and
contexts are left out: estimates for an empty context, before anything is measured. docs/split-plan.md names what is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from agentmesh.inference.logic.election import hosts, rtt_between
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_limits import ADVICE_RATIO, CPU_BYTES_PER_S, DEVICE_BYTES_PER_S, MAX_WORKERS
from agentmesh.inference.logic.split_values import NodeFacts, Outcome, PlanModel, Solo, Split, Wish, id_text

_MAX_HOSTS_COMPARED = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one token: computing, and the way to the workers and back. `is_guess`: a memory's speed or a round trip was not known."""

    compute_ms: float
    network_ms: float
    is_guess: bool

    @property
    def tokens_per_s(self) -> float:
        return 1000 / (self.compute_ms + self.network_ms)


@dataclass(frozen=True, slots=True)
class Advice:
    """What the plan will do, and what would be faster; sentences for the user, none if nothing is."""

    estimate: Estimate | None
    sentences: tuple[str, ...]


def estimate(model: PlanModel, plan: Solo | Split, nodes: Iterable[NodeFacts]) -> Estimate:
    """What a token takes by this plan; its nodes must be among `nodes`."""
    by_id = {node.node: node for node in nodes}
    if isinstance(plan, Solo):
        device = plan.fit.room.device if plan.fit.room.on_device else None
        speed, known = _speed(by_id[plan.node], device)
        return Estimate(
            _active_bytes(model, sum(model.parts.block_bytes), with_output=True) / speed * 1000, 0.0, not known
        )
    compute_ms, guess = 0.0, False
    last = plan.shares[-1]
    for share in plan.shares:
        weights = sum(model.parts.block_bytes[share.first : share.first + share.layers])
        has_output = share.place.is_host and (share.place.device is None or share == last)
        speed, known = _speed(by_id[share.place.node], share.place.device)
        compute_ms += _active_bytes(model, weights, with_output=has_output) / speed * 1000
        guess |= not known
    rtts = [rtt_between(by_id[plan.host], by_id[worker]) for worker in plan.workers]
    return Estimate(compute_ms, sum(rtt or 0.0 for rtt in rtts), guess or None in rtts)


def _active_bytes(model: PlanModel, block_bytes: int, *, with_output: bool) -> float:
    """What one token reads of these layers."""
    facts = model.facts
    blocks = sum(model.parts.block_bytes) or 1
    share = facts.expert_bytes / blocks if facts.expert_count else 0.0
    used = facts.expert_used_count / facts.expert_count if facts.expert_count else 1.0
    return block_bytes * (1 - share + share * used) + (model.parts.output_bytes if with_output else 0)


def _speed(node: NodeFacts, device: str | None) -> tuple[int, bool]:
    """Bytes a second of a place's memory, and whether that is known."""
    if device is None:
        return node.machine_bytes_per_s or CPU_BYTES_PER_S, bool(node.machine_bytes_per_s)
    names = device.split(",")
    known = [d.bytes_per_s for d in node.devices if d.name in names and d.bytes_per_s]
    return (min(known), True) if len(known) == len(names) else (DEVICE_BYTES_PER_S, False)


def advise(
    model: PlanModel, wish: Wish, nodes: Sequence[NodeFacts], outcome: Outcome, smaller: Sequence[PlanModel] = ()
) -> Advice:
    """Compare the plan with other ways.

    Args:
        outcome: what `make_plan` said of these.
        smaller: the same model in smaller quants, the largest first.
    """
    if isinstance(outcome, Solo):
        own = estimate(model, outcome, nodes)
        return Advice(own, (f"About {_rate(own)} on one node.",))
    own = estimate(model, outcome, nodes) if isinstance(outcome, Split) else None
    by_id = {node.node: node for node in nodes}
    sentences = [_said(own, outcome)] if own is not None and isinstance(outcome, Split) else []
    sentences += _smaller_quants(own, wish, nodes, smaller, by_id)
    if own is not None and isinstance(outcome, Split):
        sentences += _other_hosts(model, wish, nodes, outcome, own, by_id)
        sentences += _other_numbers(model, wish, nodes, outcome, own, by_id)
    return Advice(own, tuple(sentences))


def _said(own: Estimate, split: Split) -> str:
    count = len(split.workers)
    workers = "1 worker" if count == 1 else f"{count} workers"
    guess = " Some speeds are guesses." if own.is_guess else ""
    return (
        f"About {_rate(own)}: {own.compute_ms:.0f} ms of computing a token, and {own.network_ms:.0f} ms for the way to "
        f"{workers} and back.{guess}"
    )


def _smaller_quants(
    own: Estimate | None,
    wish: Wish,
    nodes: Sequence[NodeFacts],
    smaller: Sequence[PlanModel],
    by_id: Mapping[bytes, NodeFacts],
) -> list[str]:
    """The largest one that a single node holds and that is faster; where nothing fits, the largest one that fits at all."""
    free = msgspec.structs.replace(wish, tensor_split=(), host=b"", min_peers=0)
    for quant in smaller:
        other = make_plan(quant, free, nodes)
        if not isinstance(other, Solo | Split) or (own is not None and not isinstance(other, Solo)):
            continue
        rate = estimate(quant, other, nodes)
        name = quant.facts.quant or quant.id
        where = f"on {by_id[other.host].shown} alone" if isinstance(other, Solo) else "over the nodes that are here"
        if own is None:
            return [f"The smaller quant {name} would fit {where}, with about {_rate(rate)}."]
        if rate.tokens_per_s >= own.tokens_per_s * ADVICE_RATIO:
            return [
                f"The smaller quant {name} would fit {where}, and be about {_times(rate, own)} as fast ({_rate(rate)})."
            ]
    return []


def _other_hosts(
    model: PlanModel,
    wish: Wish,
    nodes: Sequence[NodeFacts],
    split: Split,
    own: Estimate,
    by_id: Mapping[bytes, NodeFacts],
) -> list[str]:
    """A small host beside one large worker among them."""
    others = [node for node in hosts(nodes) if node.node != split.host]
    others.sort(key=lambda node: (node.node not in split.workers, node.free_bytes, node.node))
    best: tuple[float, bytes, Estimate] | None = None
    for host in others[:_MAX_HOSTS_COMPARED]:
        outcome = make_plan(model, msgspec.structs.replace(wish, host=host.node), nodes)
        if isinstance(outcome, Split):
            rate = estimate(model, outcome, nodes)
            best = max(best or (0.0, b"", rate), (rate.tokens_per_s, host.node, rate), key=lambda one: one[0])
    if best is None or best[0] < own.tokens_per_s * ADVICE_RATIO:
        return []
    name = by_id[best[1]].shown
    return [
        f"With {name} as host (--host-node {id_text(best[1])}) it would be about {_times(best[2], own)} as fast ({_rate(best[2])})."
    ]


def _other_numbers(
    model: PlanModel,
    wish: Wish,
    nodes: Sequence[NodeFacts],
    split: Split,
    own: Estimate,
    by_id: Mapping[bytes, NodeFacts],
) -> list[str]:
    """As much as possible on the node with the fastest memory, instead of in proportion to memory."""
    if wish.tensor_split or len(split.workers) > MAX_WORKERS:
        return []
    layers = dict.fromkeys((*split.workers, split.host), 0)
    for share in split.shares:
        layers[share.place.node] += share.layers
    speeds = {node: _node_speed(by_id[node]) for node in layers}
    fastest = max(layers, key=lambda node: (speeds[node], node))
    best: tuple[Estimate, tuple[float, ...]] | None = None
    moved = dict(layers)
    while (
        slowest := min((n for n in moved if n != fastest and moved[n] > 1), key=lambda n: (speeds[n], n), default=None)
    ) is not None:
        moved[slowest] -= 1
        moved[fastest] += 1
        numbers = tuple(float(count) for count in moved.values())
        pinned = msgspec.structs.replace(
            wish, tensor_split=numbers, host=split.host, context_tokens=split.context_tokens
        )
        outcome = make_plan(model, pinned, nodes)
        if not isinstance(outcome, Split) or outcome.workers != split.workers:
            break
        best = (estimate(model, outcome, nodes), numbers)
    if best is None or best[0].tokens_per_s < own.tokens_per_s * ADVICE_RATIO:
        return []
    shown = ",".join(f"{number:.0f}" for number in best[1])
    name = by_id[fastest].shown
    return [
        f"With more layers on {name} (--tensor-split {shown}) it would be about {_times(best[0], own)} as fast ({_rate(best[0])})."
    ]


def _node_speed(node: NodeFacts) -> int:
    return min(_speed(node, d.name)[0] for d in node.devices) if node.devices else _speed(node, None)[0]


def _rate(rate: Estimate) -> str:
    """In two digits: it is an estimate."""
    return f"{float(f'{rate.tokens_per_s:.2g}'):,g} tokens/s"


def _times(rate: Estimate, own: Estimate) -> str:
    return f"{rate.tokens_per_s / own.tokens_per_s:.1f} x"
