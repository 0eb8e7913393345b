"""One host and its workers: which places there are, what each takes whatever its layers, and whether a model fits on them.

Owns the order of places (llama.cpp's devices) and the options that follow from it. Who host and workers are is plan.py's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice

from agentmesh.inference.logic.model_parts import base_bytes, host_memory_bytes, layers_bytes
from agentmesh.inference.logic.split import llama_layers, numbers_for, spread
from agentmesh.inference.logic.split_limits import HEADROOM_PERCENT, MAX_SPLIT_DEVICES, MAX_WORKERS
from agentmesh.inference.logic.split_values import NodeFacts, Place, PlanModel, Share, Split, Wish


def less_headroom(free_bytes: int) -> int:
    """What of free memory a plan may use."""
    return free_bytes * (100 - HEADROOM_PERCENT) // 100


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be placed: a model with so many contexts."""

    model: PlanModel
    context_tokens: int
    slots: int
    host_extra_bytes: int
    layer_costs: tuple[int, ...]  # weights and contexts of each layer, in bytes
    _fixed: dict[tuple[bool, bool, bool], int] = field(
        default_factory=dict[tuple[bool, bool, bool], int], compare=False
    )

    def fixed_bytes(self, place: Place, *, is_last: bool) -> int:
        """What `place` takes whatever its layers. The output is with a host without accelerators, else with the last device."""
        kind = place.is_host, place.device is None, is_last
        if (known := self._fixed.get(kind)) is None:  # asked for each place of each placing that is tried
            known = self._fixed[kind] = self._fixed_bytes(place, is_last=is_last)
        return known

    def _fixed_bytes(self, place: Place, *, is_last: bool) -> int:
        host_is_cpu = place.is_host and place.device is None
        base = base_bytes(
            self.model.facts,
            self.model.parts,
            self.context_tokens,
            self.slots,
            on_device=place.device is not None,
            with_output=place.is_host and (host_is_cpu or is_last),
        )
        extra = self.host_extra_bytes if place.is_host and (host_is_cpu or is_last) else 0
        if host_is_cpu:  # the output's weights are counted there, once if they are the input's
            base -= self.model.parts.output_bytes
            extra += host_memory_bytes(self.model.parts, has_output=True, host_is_cpu=True)
        return base + extra


@lru_cache(maxsize=16)  # asked for each host and context that is tried
def demand_of(model: PlanModel, context_tokens: int, slots: int, host_extra_bytes: int = 0) -> Demand:
    """With the costs of all layers, which many placings ask for."""
    costs = tuple(
        layers_bytes(model.facts, model.parts, layer, layer + 1, context_tokens, slots)
        for layer in range(len(model.parts.block_bytes))
    )
    return Demand(model, context_tokens, slots, host_extra_bytes, costs)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Whether it fits; `missing_bytes` is what all places together lack, at least 1 where it does not fit."""

    split: Split | None
    missing_bytes: int = 0
    over: str = ""


def places_of(host: NodeFacts, workers: Sequence[NodeFacts]) -> list[Place]:
    """In llama.cpp's order: a host without accelerators first (layers that are not offloaded), the workers' devices, the host's."""
    cpu_host = [] if host.devices else [Place(host.node, None, less_headroom(host.machine_free_bytes), True)]
    lent = [place for worker in workers for place in _devices(worker, is_host=False)]
    own = _devices(host, is_host=True) if host.devices else []
    return [*cpu_host, *lent, *own]


def _devices(node: NodeFacts, *, is_host: bool) -> list[Place]:
    if not node.devices:
        return [Place(node.node, None, less_headroom(node.machine_free_bytes), is_host)]
    return [Place(node.node, d.name, less_headroom(d.free_bytes), is_host) for d in node.devices]


def usable_devices(demand: Demand, worker: NodeFacts) -> int:
    """How many of its devices (its machine's memory, if it has none) have room for a layer."""
    device = worker.devices[0].name if worker.devices else None
    least = min(demand.layer_costs) + demand.fixed_bytes(Place(worker.node, device, 0, False), is_last=False)
    free = [d.free_bytes for d in worker.devices] or [worker.machine_free_bytes]
    return sum(less_headroom(count) >= least for count in free)


def worker_rooms(demand: Demand, nodes: Iterable[NodeFacts]) -> list[tuple[int, bytes]]:
    """What each could give to layers as a worker, in bytes, the most first."""
    rooms = ((sum(_rooms(demand, _devices(node, is_host=False))), node.node) for node in nodes)
    return sorted(rooms, reverse=True)


def may_hold(demand: Demand, host: NodeFacts, workers: Sequence[tuple[int, bytes]]) -> bool:
    """Whether all layers could fit on this host and the largest of `worker_rooms`. What it denies, `fit_split` does not find either;
    it is asked where that would be tried in vain with every host, context and number of workers."""
    lent = islice((room for room, node in workers if node != host.node), MAX_WORKERS)
    return sum(_rooms(demand, _devices(host, is_host=True))) + sum(lent) >= sum(demand.layer_costs)


def _rooms(demand: Demand, places: Iterable[Place]) -> Iterator[int]:
    return (max(place.limit_bytes - demand.fixed_bytes(place, is_last=False), 0) for place in places)


def fit_split(demand: Demand, host: NodeFacts, workers: Sequence[NodeFacts], wish: Wish) -> Fitted:
    """Place all layers on these nodes; each worker gets at least one."""
    costs = demand.layer_costs
    places = places_of(host, workers)
    if not wish.tensor_split:  # a device that cannot hold a single layer would only cost a round trip
        least = min(costs)
        places = [p for p in places if p.is_host or p.limit_bytes - demand.fixed_bytes(p, is_last=False) >= least]
    if len({p.node for p in places if not p.is_host}) < len(workers):
        return Fitted(None, _missing(demand, costs, places))
    if sum(1 for p in places if not (p.is_host and p.device is None)) > MAX_SPLIT_DEVICES:
        return Fitted(None, 1, f"llama.cpp takes at most {MAX_SPLIT_DEVICES} devices in a split")
    memory = host_memory_bytes(demand.model.parts, has_output=False, host_is_cpu=False) if host.devices else 0
    if memory > less_headroom(host.machine_free_bytes):
        return Fitted(None, memory - less_headroom(host.machine_free_bytes), f"{host.shown}'s machine memory")
    fixed = [demand.fixed_bytes(place, is_last=place is places[-1]) for place in places]
    if wish.tensor_split:
        counts = _asked(wish.tensor_split, [host, *workers], places, len(costs))
    else:
        rooms = [place.limit_bytes - own for place, own in zip(places, fixed, strict=True)]
        if any(room < 0 for room in rooms):
            return Fitted(None, _missing(demand, costs, places))
        counts = spread(costs, rooms, [0 if place.is_host else 1 for place in places])
        if counts is None:
            return Fitted(None, _missing(demand, costs, places))
    return _checked(demand, host, workers, places, fixed, costs, counts, memory)


def _asked(
    numbers: Sequence[float], nodes: Sequence[NodeFacts], places: Sequence[Place], layers: int
) -> tuple[int, ...]:
    """Layers by the user's numbers (workers first, host last), by llama.cpp's rounding; a node's number goes to its devices by
    their memory. `nodes`: the host first."""
    by_node = dict(zip([node.node for node in (*nodes[1:], nodes[0])], numbers, strict=True))
    together = {node.node: sum(p.limit_bytes for p in places if p.node == node.node) or 1 for node in nodes}
    return llama_layers([by_node[p.node] * p.limit_bytes / together[p.node] for p in places], layers)


def _checked(
    demand: Demand,
    host: NodeFacts,
    workers: Sequence[NodeFacts],
    places: Sequence[Place],
    fixed: Sequence[int],
    costs: Sequence[int],
    counts: Sequence[int],
    memory: int,
) -> Fitted:
    """The split, if no place is over its limit: whatever made the counts, they are checked here."""
    prefix = [0, *accumulate(costs)]
    shares: list[Share] = []
    first = 0
    for place, own, count in zip(places, fixed, counts, strict=True):
        need = own + prefix[first + count] - prefix[first]
        if need > place.limit_bytes:
            names = {node.node: node.shown for node in (host, *workers)}
            where = names[place.node] + (f" ({place.device})" if place.device else "")
            return Fitted(None, need - place.limit_bytes, where)
        shares.append(Share(place, first, count, need))
        first += count
    offloaded = [share.layers for share in shares if not (share.place.is_host and share.place.device is None)]
    numbers = numbers_for(offloaded)
    return Fitted(
        Split(
            host=host.node,
            workers=tuple(worker.node for worker in workers),
            shares=tuple(shares),
            tensor_split=numbers,
            gpu_layers=sum(numbers),
            output_on_cpu=not host.devices,
            context_tokens=demand.context_tokens,
            slots=demand.slots,
            host_memory_bytes=memory or host_memory_bytes(demand.model.parts, has_output=True, host_is_cpu=True),
        )
    )


def _missing(demand: Demand, costs: Sequence[int], places: Sequence[Place]) -> int:
    rooms = [p.limit_bytes - demand.fixed_bytes(p, is_last=p is places[-1]) for p in places]
    return max(sum(costs) - sum(max(room, 0) for room in rooms), 1)
