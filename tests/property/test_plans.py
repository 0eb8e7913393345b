"""Plans from any nodes: the same whatever the order, nobody over its memory, never a split of what one node could hold."""

from __future__ import annotations

import struct
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.inference.logic.fit import Wanted, fit_model
from agentmesh.inference.logic.keeping import broken
from agentmesh.inference.logic.plan import make_plan, rooms_of
from agentmesh.inference.logic.split import llama_layers, numbers_for, spread
from agentmesh.inference.logic.split_limits import MAX_RTT_MS, MAX_SPLIT_DEVICES
from agentmesh.inference.logic.split_values import NodeFacts, Shards, Solo, Split, Way, Wish
from tests.fakes.split_world import GB, a_model, a_node, node_id

numpy = pytest.importorskip("numpy")

MODELS = (
    a_model(layers=12, layer_bytes=GB),
    a_model(layers=12, layer_bytes=GB, experts=16),
    a_model(uneven=(GB // 4,) * 4 + (2 * GB,) * 3 + (GB // 2,) * 5, output_bytes=2 * GB),
)


@st.composite
def friendly_sets(draw: st.DrawFn) -> list[NodeFacts]:
    """Two to six nodes that can share: most plans are splits."""
    count = draw(st.integers(2, 6))
    return [
        a_node(
            number,
            draw(st.sampled_from((4, 6, 9, 11))),
            gpus=draw(st.sampled_from(((), (), (), (4.0, 5.0), (8.0,)))),
            rtts={other: draw(st.sampled_from((0.3, 1, 15, 79))) for other in range(1, count + 1) if other != number},
            files=draw(st.sampled_from(((), ("aa",), ("bb",)))),
        )
        for number in range(1, count + 1)
    ]


@st.composite
def mixed_sets(draw: st.DrawFn) -> list[NodeFacts]:
    """Friendly ones with one to three that have something against it."""
    nodes = draw(friendly_sets())
    others = [node.node for node in nodes]
    for _ in range(draw(st.integers(1, 3))):
        which = draw(st.integers(0, len(nodes) - 1))
        change = draw(
            st.sampled_from(
                (
                    {"is_client": True},
                    {"takes_part": False},
                    {"has_rpc": False},
                    {"engine_commit": "other"},
                    {"engine_commit": ""},
                    {"rpc_version": (7, 0, 1)},
                    {"lends_to_all": False},
                    {"lends_to_all": False, "lends_to": (others[0],)},
                    {"rtt_ms": ()},
                    {"rtt_ms": tuple((other, 81.0) for other in others)},
                    {"machine_free_bytes": GB // 5},
                    {"machine_free_bytes": 40 * GB},
                )
            )
        )
        nodes[which] = msgspec.structs.replace(nodes[which], **change)
    return nodes


def node_sets() -> st.SearchStrategy[list[NodeFacts]]:
    return st.one_of(friendly_sets(), mixed_sets())


WISHES = st.just(Wish()) | st.builds(
    Wish,
    way=st.sampled_from(list(Way)),
    tensor_split=st.sampled_from(((), (), (), (1.0, 1.0), (3.0, 1.0, 2.0), (0.0, 1.0), (1.0,) * 16, (-1.0, 1.0))),
    context_tokens=st.sampled_from((None, None, 4096, 16_384)),
    slots=st.sampled_from((None, 2)),
    host=st.sampled_from((b"", b"", b"", node_id(1), node_id(2), node_id(99))),
    min_peers=st.integers(0, 3),
    host_extra_bytes=st.sampled_from((0, GB)),
)


@given(nodes=node_sets(), wish=WISHES, model=st.sampled_from(MODELS), data=st.data())
def test_every_node_plans_the_same_whatever_the_order_of_records(
    nodes: list[NodeFacts], wish: Wish, model: object, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(nodes))
    assert make_plan(model, wish, nodes) == make_plan(model, wish, [*shuffled, shuffled[0]])  # type: ignore[arg-type]


@settings(max_examples=200)
@given(nodes=node_sets(), wish=WISHES, number=st.integers(0, len(MODELS) - 1))
def test_what_is_planned_can_be_done(nodes: list[NodeFacts], wish: Wish, number: int) -> None:
    model = MODELS[number]
    outcome = make_plan(model, wish, nodes)
    by_id = {node.node: node for node in nodes}
    if isinstance(outcome, Solo | Split):
        assert broken(outcome, nodes) is None
    if isinstance(outcome, Shards):
        assert model.facts.expert_count
        assert all(room.need_bytes <= by_id[room.node].free_bytes * 0.9 for room in outcome.nodes)
    if not isinstance(outcome, Split):
        return
    host = by_id[outcome.host]
    wanted = Wanted(wish.context_tokens, wish.slots)
    for node in nodes:
        able = node.takes_part and not node.is_client and node.engine_commit
        assert not (able and fit_model("m", model.facts, wanted, rooms_of(node)).fits)
    for worker in (by_id[one] for one in outcome.workers):
        assert (worker.engine_commit, worker.rpc_version) == (host.engine_commit, host.rpc_version)
        assert worker.lends(host.node)
        assert max(r for r in (worker.rtt_to(host.node), host.rtt_to(worker.node)) if r is not None) <= MAX_RTT_MS
    for share in outcome.shares:
        node = by_id[share.place.node]
        device = next((d.free_bytes for d in node.devices if d.name == share.place.device), None)
        assert share.need_bytes <= (node.machine_free_bytes if device is None else device) * 0.9
        weights = sum(model.parts.block_bytes[share.first : share.first + share.layers])
        assert share.need_bytes >= weights + model.facts.kv_bytes(outcome.context_tokens) * share.layers // 12
    assert sum(share.layers for share in outcome.shares) == 12
    assert len(outcome.workers) >= max(wish.min_peers, 1)
    assert len(outcome.tensor_split) <= MAX_SPLIT_DEVICES
    # llama.cpp would place just so: the first layers in the host's memory, then each device's, then the output.
    devices = [s.layers for s in outcome.shares if not (s.place.is_host and s.place.device is None)]
    placed = llama_layers(outcome.tensor_split, outcome.gpu_layers)
    assert (*placed[:-1], placed[-1] - 1) == tuple(devices)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=16).filter(any))
def test_whole_layers_are_never_rounded_by_llama_cpp(counts: list[int]) -> None:
    assert llama_layers(counts, sum(counts)) == tuple(counts)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=16), st.integers(1, 127))
def test_our_float32_is_a_machine_s(numbers: list[int], layers: int) -> None:
    single = numpy.float32
    running = list(accumulate((single(n) for n in numbers), lambda a, b: single(a + b)))
    shares = [single(one / running[-1]) for one in running]
    expected = [0] * len(numbers)
    for layer in range(layers):
        place = single(layer) / single(layers)
        expected[next(i for i, share in enumerate(shares) if share > place)] += 1
    assert llama_layers(numbers, layers) == tuple(expected)
    assert struct.calcsize("f") == 4


@given(
    costs=st.lists(st.integers(1, 60), min_size=1, max_size=14),
    rooms=st.lists(st.integers(-5, 120), min_size=1, max_size=5),
    host_first=st.booleans(),
)
def test_what_fits_is_found_and_nothing_else(costs: list[int], rooms: list[int], host_first: bool) -> None:
    least = [0 if (i == 0 and host_first) else 1 for i in range(len(rooms))]
    counts = spread(costs, rooms, least)
    assert (counts is not None) == _fits(tuple(costs), tuple(rooms), tuple(least))
    if counts is None:
        return
    assert sum(counts) == len(costs)
    start = 0
    for count, room, low in zip(counts, rooms, least, strict=True):
        assert count >= low
        assert sum(costs[start : start + count]) <= max(room, 0)
        start += count
    assert numbers_for(counts)[-1] == counts[-1] + 1


def _fits(costs: tuple[int, ...], rooms: tuple[int, ...], least: tuple[int, ...]) -> bool:
    """By trying everything."""
    if not rooms:
        return not costs
    return any(
        sum(costs[:count]) <= max(rooms[0], 0) and _fits(costs[count:], rooms[1:], least[1:])
        for count in range(least[0], len(costs) + 1)
    )
