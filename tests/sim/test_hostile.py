"""A member that does not play by the rules: nothing gets in, it is closed, the others do not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.gossip import FLOOD, FORGED
from agentmesh.mesh.logic.limits import MAX_BLAME, PENDING_RECORDS
from agentmesh.mesh.logic.messages import (
    ForwardJoin,
    Gossip,
    Graft,
    IHave,
    PeerEntry,
    Ping,
    Reconcile,
    RecordBatch,
    Shuffle,
    WantRecords,
)
from agentmesh.mesh.logic.record import SignedRecord, record_id
from tests.sim.keys import POST, CheapKey
from tests.sim.network import Simulator
from tests.sim.node import SimNode
from tests.sim.scenario import delivered_once, has_all, islands, mesh_of, nobody_blamed

Attack = Callable[[Simulator, SimNode, int], SignedRecord]


def _garbage(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return SignedRecord(sim.rng.randbytes(200), bytes(64))


def _forged(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    """Another member's post, with the attacker's signature."""
    real = sim.mint.post(1, f"not mine {number}", sim.now_ms)
    return SignedRecord(real.signed.body, hostile.key.sign(real.signed.body))


def _tampered(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    real = sim.mint.post(1, f"tampered {number}", sim.now_ms).signed
    return SignedRecord(real.body[:-1] + bytes([real.body[-1] ^ 1]), real.signature)


def _foreign(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    """A good record of another mesh."""
    return type(sim.mint)(seed=99).post(0, f"{number}", sim.now_ms).signed


def _too_long(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    record = sim.mint.record(hostile.key, "post", b"%d" % number, sim.now_ms, 100 * DAY_MS)
    return record.signed


def _oversized(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    payload = bytes(POST.max_payload_bytes + 1) + b"%d" % number
    return sim.mint.record(hostile.key, "post", payload, sim.now_ms, HOUR_MS).signed


def _far_future(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return sim.mint.post(hostile.number, f"{number}", sim.now_ms + 300 * DAY_MS).signed


def _long_expired(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return sim.mint.record(hostile.key, "post", b"%d" % number, sim.now_ms - 9 * DAY_MS, HOUR_MS).signed


def _false_policy(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return sim.mint.record(hostile.key, "policy", b"\x90", sim.now_ms + number, DAY_MS).signed


def _just_expired(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return sim.mint.record(hostile.key, "post", b"%d" % number, sim.now_ms - HOUR_MS, 30 * MINUTE_MS).signed


def _soon(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    return sim.mint.post(hostile.number, f"{number}", sim.now_ms + 3 * HOUR_MS).signed


def _stranger(sim: Simulator, hostile: SimNode, number: int) -> SignedRecord:
    """Signed well, by a key that nobody ever admitted."""
    key = CheapKey(sim.rng.randbytes(32))
    return sim.mint.record(key, "post", b"%d" % number, sim.now_ms, HOUR_MS).signed


def _attack(make: Attack, count: int, *, batch: bool) -> tuple[Simulator, list[SimNode], SimNode]:
    """The last of eight nodes sends `count` such records to node 1 while the others go on."""
    sim = Simulator(11)
    nodes = mesh_of(sim, 8)
    sim.run_for(10_000)
    hostile, victim = nodes[-1], nodes[1]
    if victim.id not in hostile.conns:
        sim.dial(hostile, victim.id)
        sim.run_for(2_000)
    signed = [make(sim, hostile, number) for number in range(count)]
    for start in range(0, count, 8):
        piece = tuple(signed[start : start + 8])
        sim.after(start * 5, sim.send, hostile, victim.id, RecordBatch(piece) if batch else Gossip(piece, 1))
    honest = [node for node in nodes if node is not hostile]
    posts = [node.post("undisturbed") for node in honest]
    sim.run_until(has_all(honest, [post.id for post in posts]), 5_000, "the honest posts are everywhere")
    sim.run_for(count * 5)
    bad = {record_id(record.body) for record in signed}
    assert all(not bad & node.store.keys() for node in nodes), "a bad record got in"
    assert delivered_once(honest)
    assert nobody_blamed([node for node in honest if node is not victim])
    return sim, honest, hostile


@pytest.mark.parametrize("batch", [False, True], ids=["pushed", "in a batch"])
@pytest.mark.parametrize(
    "make",
    [_garbage, _forged, _tampered, _foreign, _too_long, _oversized, _far_future, _long_expired, _false_policy],
)
def test_who_sends_what_no_honest_node_could_is_closed_and_stays_out(make: Attack, batch: bool) -> None:
    sim, honest, hostile = _attack(make, 2 * MAX_BLAME, batch=batch)
    victim = honest[1]
    assert (hostile.id, FORGED) in victim.closed
    sim.run_for(60_000)
    assert hostile.id not in victim.machine.active_peers(), "banned for a while"
    assert islands(honest) == 1


@pytest.mark.parametrize("make", [_just_expired, _soon, _stranger])
def test_what_an_honest_node_might_send_in_error_is_refused_without_blame(make: Attack) -> None:
    _, honest, hostile = _attack(make, 2 * MAX_BLAME, batch=True)
    assert nobody_blamed(honest)
    assert all(reason != FORGED for node in honest for peer, reason in node.closed if peer == hostile.id)


def test_strangers_records_fill_a_bounded_share_and_push_out_nobody_elses() -> None:
    _, honest, _ = _attack(_stranger, PENDING_RECORDS // 2, batch=True)
    assert honest[1].machine.waiting_records() <= PENDING_RECORDS // 4


def test_a_forged_copy_does_not_keep_the_real_record_out() -> None:
    sim = Simulator(12)
    nodes = mesh_of(sim, 4)
    sim.run_for(5_000)
    real = sim.mint.post(1, "the real one", sim.now_ms)
    forged = SignedRecord(real.signed.body, bytes(64))
    for victim in (nodes[0], nodes[2]):
        sim.send(nodes[3], victim.id, Gossip((forged,), 1))
    sim.run_for(1_000)
    nodes[1].create(real)
    sim.run_until(has_all(nodes, [real.id]), 5_000, "the real record is everywhere")


@pytest.mark.parametrize("kind", ["ping", "ihave", "want", "shuffle", "join", "reconcile"])
def test_a_flood_of_messages_is_closed_and_costs_the_others_nothing(kind: str) -> None:
    sim = Simulator(13)
    nodes = mesh_of(sim, 6)
    sim.run_for(10_000)
    hostile, victim = nodes[-1], nodes[1]
    someone = PeerEntry(bytes(32), ("203.0.113.1:1",), True)
    make = {
        "ping": lambda n: Ping(n, 1, 0),
        "ihave": lambda n: IHave(sim.rng.randbytes(160), 1),
        "want": lambda n: WantRecords(sim.rng.randbytes(160)),
        "shuffle": lambda n: Shuffle(PeerEntry(sim.rng.randbytes(32), ("203.0.113.1:1",), True), (someone,) * 20, 200),
        "join": lambda n: ForwardJoin(PeerEntry(sim.rng.randbytes(32), ("203.0.113.1:1",), True), 200),
        "reconcile": lambda n: Reconcile(n, sim.rng.randbytes(40)),
    }[kind]
    for number in range(15_000):
        sim.at(sim.now_ms + number // 15, sim.send, hostile, victim.id, make(number))
    honest = nodes[:-1]
    posts = [node.post("in spite of it") for node in honest]
    sim.run_until(has_all(honest, [post.id for post in posts]), 5_000, "the honest posts are everywhere")
    sim.run_for(2_000)
    assert (hostile.id, FLOOD) in victim.closed
    sim.run_for(30_000)
    assert islands(honest) == 1


def test_nonsense_in_well_formed_messages_is_survived() -> None:
    sim = Simulator(14)
    nodes = mesh_of(sim, 4)
    sim.run_for(5_000)
    hostile, victim = nodes[3], nodes[0]
    for message in (
        IHave(b"odd", 1),
        IHave(b"x" * 16, -5),
        Graft(b"y" * 17),
        Gossip((), 10**9),
        ForwardJoin(PeerEntry(b"short", ("a",) * 50, True), 10**9),
        Shuffle(PeerEntry(b"", (), True), (), -1),
        Reconcile(2, b"\xff"),
        Reconcile(3, b"\x00"),
        WantRecords(b"z" * 16 * 5_000),
    ):
        sim.send(hostile, victim.id, message)
    sim.run_for(20_000)
    post = nodes[1].post("still here")
    sim.run_until(has_all(nodes[:3], [post.id]), 5_000, "the mesh goes on")
