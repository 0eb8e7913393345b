"""Where a model runs: whole on one node, in layers over several, in expert shards, or nowhere yet and why.

    outcome = make_plan(model, wish, nodes)

Owns the order of preference and the sentences. A function of the set of records alone: every node comes to the same answer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from agentmesh.inference.logic.election import (
    Team,
    by_memory,
    holders,
    hosts,
    is_measured,
    team_of,
    trips_of,
    unfit_host,
)
from agentmesh.inference.logic.fit import NO_DEVICE, Room, Wanted, fit_model, least_need, size
from agentmesh.inference.logic.placement import Demand, demand_of, fit_split, may_hold, usable_devices, worker_rooms
from agentmesh.inference.logic.shard_rooms import shard_rooms
from agentmesh.inference.logic.split_limits import (
    MAX_SPLIT_CONTEXT_TOKENS,
    MAX_SPLIT_DEVICES,
    MAX_WORKERS,
    MIN_SPLIT_CONTEXT_TOKENS,
)
from agentmesh.inference.logic.split_values import (
    Common,
    ExclusionCode,
    NodeFacts,
    Outcome,
    PlanModel,
    Shards,
    Solo,
    Split,
    Wait,
    WaitCode,
    Way,
    Wish,
    short_id_text,
)

_MAX_TOLD: Final = 2  # nodes that could take part if somebody changed something there
_TOLD: Final = (ExclusionCode.OTHER_ENGINE, ExclusionCode.NOT_LENT, ExclusionCode.NO_RPC, ExclusionCode.TOO_FAR)
_MIN_SHARE, _MAX_SHARE = 1e-6, 1e12  # of --tensor-split
_MAX_HOSTS_TRIED: Final = 16  # the nodes with most memory; a plan must not take longer the more nodes there are


def make_plan(model: PlanModel, wish: Wish, nodes: Iterable[NodeFacts]) -> Outcome:
    """See the module. Of two records of one node, which cannot be, the smaller one counts."""
    by_id = {node.node: node for node in sorted(nodes, key=lambda n: (n.node, msgspec.msgpack.encode(n)), reverse=True)}
    if (solo := _solo(model, wish, by_id)) is not None:
        return solo
    has_experts = model.facts.expert_count > 0
    if wish.way == Way.EXPERTS and not has_experts:
        sentence = f"{model.id} has no experts, so --split=experts cannot be. Leave it out, or use --split=layers."
        return Wait(WaitCode.NO_EXPERTS, sentence)
    if has_experts and wish.way != Way.LAYERS:
        shards = _shards(model, wish, by_id)
        if isinstance(shards, Shards) or wish.way == Way.EXPERTS:
            return shards
    return _layers(model, wish, by_id)


def plan_digest(outcome: Outcome) -> str:
    """Names a plan: the same for the same placing, whatever the sentences."""
    return hashlib.sha256(repr(replace(outcome, common=Common())).encode()).hexdigest()[:16]


def contexts(model: PlanModel, wish: Wish) -> list[int]:
    """The contexts to try, longest first."""
    if wish.context_tokens is not None:
        return [wish.context_tokens]
    context = min(model.facts.context_length or MIN_SPLIT_CONTEXT_TOKENS, MAX_SPLIT_CONTEXT_TOKENS)
    found = [context]
    while (context := context // 2) >= MIN_SPLIT_CONTEXT_TOKENS:
        found.append(context)
    return found


# ------------------------------------------------------------------ one node


def _solo(model: PlanModel, wish: Wish, nodes: Mapping[bytes, NodeFacts]) -> Solo | None:
    """A node that can hold the whole model: it computes faster alone than with others."""
    wanted = Wanted(wish.context_tokens, wish.slots, wish.alone_extra_bytes)
    least = [least_need(model.facts, wanted, on_device=on_device).total for on_device in (False, True)]
    have = holders(list(nodes.values()), model.files)
    for node in sorted(
        by_memory(nodes.values()), key=lambda one: one.node not in have
    ):  # of each kind the largest first
        rooms = rooms_of(node)
        if not _may_run(node) or all(room.free_bytes < least[room.on_device] for room in rooms):
            continue
        fit = fit_model(model.id, model.facts, wanted, rooms)
        if fit.fits:
            reasons = [f"{node.shown} holds it alone: {fit.sentence}."]
            if wish.way != Way.ANY:
                reasons.append("It is not split, although --split asks for it: one node is faster alone.")
            return Solo(node.node, fit, Common(tuple(reasons)))
    return None


def _may_run(node: NodeFacts) -> bool:
    """Whether it could run the model by itself, or a shard of it. RPC is not asked for."""
    return node.may_host and node.takes_part and not node.is_client and bool(node.engine_commit)


def rooms_of(node: NodeFacts) -> list[Room]:
    """Where a node could put a whole model, as MemoryBook.rooms has it: the best device, all together, the machine."""
    machine = Room(NO_DEVICE if node.devices else None, node.machine_total_bytes, node.machine_free_bytes)
    devices = sorted(node.devices, key=lambda d: (-d.free_bytes, d.name))
    if not devices:
        return [machine]
    rooms = [Room(devices[0].name, devices[0].total_bytes, devices[0].free_bytes)]
    if len(devices) > 1:
        names = ",".join(d.name for d in node.devices)
        rooms.append(Room(names, sum(d.total_bytes for d in devices), node.free_bytes))
    return [*rooms, machine]


# ------------------------------------------------------------------ experts


def _shards(model: PlanModel, wish: Wish, nodes: Mapping[bytes, NodeFacts]) -> Shards | Wait:
    able = [node for node in nodes.values() if _may_run(node)]
    for context in contexts(model, wish):
        rooms = shard_rooms(model.facts, able, context, wish.slots or 1, wish.min_experts)
        if rooms is not None:
            total = model.facts.expert_count
            reason = (
                f"{len(rooms)} nodes hold at least {min(r.experts for r in rooms)} of {total} experts a layer each."
            )
            return Shards(rooms, total, context, wish.slots or 1, Common((reason,)))
    sentence = (
        f"{model.id} ({size(model.facts.weight_bytes)}) does not fit as expert shards: at least two nodes must each hold "
        f"{size(model.facts.weight_bytes - model.facts.expert_bytes)} and half of the experts, and together have room for all of them. "
        "Add a node with more memory, or use a smaller quant."
    )
    return Wait(WaitCode.MEMORY, sentence)


# ------------------------------------------------------------------ layers


def _layers(model: PlanModel, wish: Wish, nodes: Mapping[bytes, NodeFacts]) -> Split | Wait:
    if (wrong := _wrong_numbers(wish)) is not None:
        return Wait(WaitCode.TENSOR_SPLIT, wrong)
    candidates = hosts(nodes.values())[:_MAX_HOSTS_TRIED]
    if wish.host:
        named = nodes.get(wish.host)
        why = unfit_host(named) if named is not None else None
        if named is None or why is not None:
            what = (
                why.sentence
                if why is not None
                else f"no node {short_id_text(wish.host)} wants this model or lends memory now."
            )
            return Wait(WaitCode.HOST_NODE, f"The node of --host-node cannot be host: {what}")
        candidates = [named]
    if not candidates:
        excluded = tuple(w for n in sorted(nodes.values(), key=lambda n: n.node) if (w := unfit_host(n)) is not None)
        sentence = f"No node can host a part of {model.id}. " + " ".join(w.sentence for w in excluded[:3])
        return Wait(WaitCode.NODES, sentence.strip(), common=Common(excluded=excluded))
    trips = trips_of(nodes.values())
    least = demand_of(model, contexts(model, wish)[-1], wish.slots or 1, wish.host_extra_bytes)
    rooms = worker_rooms(least, nodes.values())
    waits: list[Wait] = []
    for host in candidates:
        near = [(room, node) for room, node in rooms if is_measured(host.node, node, trips)]
        if waits and not may_hold(least, host, near):  # nobody reads what it lacks
            continue
        answer = _with_host(model, wish, team_of(host, nodes, trips), nodes, _why_host(wish, host, candidates))
        if isinstance(answer, Split):
            return answer
        waits.append(answer)
    return waits[0]  # what the node that should be host lacks


def _wrong_numbers(wish: Wish) -> str | None:
    numbers = wish.tensor_split
    if not numbers:
        return None
    if not all(map(_is_share, numbers)) or sum(numbers) <= 0:
        return (
            "--tensor-split takes numbers that are not negative, not all zero, and neither huge nor tiny: one a node, "
            "workers first, the host last."
        )
    if not 2 <= len(numbers) <= MAX_WORKERS + 1:
        return f"--tensor-split has {len(numbers)} numbers; a split has 2 to {MAX_WORKERS + 1} nodes: workers first, the host last."
    if len(numbers) <= wish.min_peers:
        return (
            f"--tensor-split has {len(numbers)} numbers, one a node, but --min-peers asks for {wish.min_peers} workers "
            "beside the host. Change one of them."
        )
    if sum(numbers[:-1]) <= 0:
        return "--tensor-split gives nothing to any worker. The numbers are for the workers first, for the host last."
    return None


def _is_share(number: float) -> bool:
    """llama.cpp reckons in float32: what is no number there, or vanishes in a sum, would be divided by."""
    return number == 0 or (math.isfinite(number) and _MIN_SHARE <= number <= _MAX_SHARE)


def _why_host(wish: Wish, host: NodeFacts, candidates: Sequence[NodeFacts]) -> str:
    if wish.host:
        return "--host-node says so"
    if len(candidates) == 1:
        return f"no other node has the model ({size(host.free_bytes)} free)"
    if host is candidates[0]:
        return f"of {len(candidates)} nodes with the model it has most free memory ({size(host.free_bytes)})"
    return f"with {candidates[0].shown}, which has more memory, it would not fit"


def _with_host(
    model: PlanModel, wish: Wish, team: Team, nodes: Mapping[bytes, NodeFacts], why_host: str
) -> Split | Wait:
    common = Common((), team.excluded, tuple((team.host.node, other) for other in team.unknown))
    if (wait := _too_few(model, wish, team)) is not None:
        return replace(wait, common=common)
    missing, over = 0, ""
    for context in contexts(model, wish):
        demand = demand_of(model, context, wish.slots or 1, wish.host_extra_bytes)
        split, missing, over = _with_workers(demand, wish, team)
        if split is not None:
            have = holders(list(nodes.values()), model.files)
            lacking = tuple(node for node in split.nodes if node not in have)
            return replace(split, lacking=lacking, common=replace(common, reasons=_reasons(split, team, why_host)))
    return replace(_lacks(model, wish, team, missing, over, nodes), common=common)


def _too_few(model: PlanModel, wish: Wish, team: Team) -> Wait | None:
    there = len(team.workers)
    if wish.tensor_split and there < len(wish.tensor_split) - 1:
        sentence = (
            f"--tensor-split has {len(wish.tensor_split)} numbers, but {there + 1} nodes can take part with "
            f"{team.host.shown} as host. It takes one a node: workers first, the host last."
        )
        sentence += _who_could(team)
        return Wait(WaitCode.TENSOR_SPLIT, sentence)
    if there < wish.min_peers:
        sentence = f"{there} of {wish.min_peers} peers (--min-peers) can share {model.id} now."
        sentence += _who_could(team)
        return Wait(WaitCode.MIN_PEERS, sentence)
    return None


def _who_could(team: Team) -> str:
    """What keeps others from taking part, and what to do about it."""
    told = [why.sentence for why in team.excluded if why.code in _TOLD]
    more = f" {len(told) - _MAX_TOLD} more nodes cannot take part either." if len(told) > _MAX_TOLD else ""
    return "".join(f" {sentence}" for sentence in told[:_MAX_TOLD]) + more


def _with_workers(demand: Demand, wish: Wish, team: Team) -> tuple[Split | None, int, str]:
    """As few of the workers as it takes, the nearest first."""
    if wish.tensor_split:
        fitted = fit_split(demand, team.host, team.workers[: len(wish.tensor_split) - 1], wish)
        return fitted.split, fitted.missing_bytes, fitted.over
    least = max(wish.min_peers, 1)
    alone = fit_split(demand, team.host, [], wish)
    missing, over = alone.missing_bytes or 1, alone.over
    chosen: list[NodeFacts] = []
    for worker in team.workers:
        if len(chosen) == MAX_WORKERS:
            break
        # With none, or with too many for llama.cpp, it would keep out all that come after it.
        if not 0 < usable_devices(demand, worker) <= MAX_SPLIT_DEVICES - len(team.host.devices):
            continue
        fitted = fit_split(demand, team.host, [*chosen, worker], wish)
        chosen.append(worker)
        if fitted.split is not None and len(chosen) >= least:
            return _fewest(demand, wish, team.host, chosen, least, fitted.split), 0, ""
        missing, over = fitted.missing_bytes, fitted.over
    return None, missing, over


def _fewest(
    demand: Demand, wish: Wish, host: NodeFacts, chosen: Sequence[NodeFacts], least: int, split: Split
) -> Split:
    """Without those that it does not need: each worker costs a round trip a token."""
    kept = list(chosen)
    for worker in sorted(chosen, key=lambda node: (node.free_bytes, node.node)):
        rest = [node for node in kept if node.node != worker.node]
        if len(rest) >= least and (without := fit_split(demand, host, rest, wish).split) is not None:
            kept, split = rest, without
    return split


def _reasons(split: Split, team: Team, why_host: str) -> tuple[str, ...]:
    names = {node.node: node.shown for node in (team.host, *team.workers)}
    layers: dict[bytes, int] = {}
    for share in split.shares:
        layers[share.place.node] = layers.get(share.place.node, 0) + share.layers
    parts = ", ".join(f"{names[node]} {layers.get(node, 0)}" for node in split.nodes)
    return (f"{team.host.shown} is host: {why_host}.", f"Layers: {parts}; context {split.context_tokens:,} tokens.")


def _lacks(model: PlanModel, wish: Wish, team: Team, missing: int, over: str, nodes: Mapping[bytes, NodeFacts]) -> Wait:
    free = team.host.free_bytes + sum(node.free_bytes for node in team.workers)
    lack = f"{size(missing)} are missing" if missing > 1 else "its layers do not fit their devices"
    if over and wish.tensor_split:
        sentence = f"By --tensor-split {over} would get more than it has: {lack} there. Give it a smaller number."
        return Wait(WaitCode.TENSOR_SPLIT, sentence, missing)
    if team.workers:
        there = f"{1 + len(team.workers)} nodes have {size(free)} free"
        sentence = f"{model.id} ({size(model.facts.weight_bytes)}) does not fit: {there}, {lack}."
    else:
        wanted = Wanted(wish.context_tokens, wish.slots)
        alone = fit_model(model.id, model.facts, wanted, rooms_of(team.host)).sentence
        sentence = f"{alone.rstrip('.')}, and no other node can share it."
    if team.unknown:
        more = sum(nodes[node].free_bytes for node in team.unknown)
        sentence += f" {len(team.unknown)} more ({size(more)}) are being measured."
        return Wait(WaitCode.MEASURING, sentence, missing)
    sentence += _who_could(team)
    sentence += (
        " Add a node with --rpc-peers, which lends memory, or with --split; give more (--max-vram); or use a smaller "
        "quant or --ctx-size."
    )
    return Wait(WaitCode.MEMORY, sentence, missing)
