"""The engine without a network: what it grants, what it paces, what a reset settles."""

from __future__ import annotations

import pytest
from aioquic.quic import events
from cryptography import x509

from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.limits import MAX_STREAMS_PER_PEER
from agentmesh.mesh.logic.transport_limits import (
    BURST_PACKETS,
    INITIAL_BURST_PACKETS,
    INITIAL_CONNECTION_WINDOW_BYTES,
    PACKETS_PER_TURN,
)
from agentmesh.mesh.quic_engine import Engine, Pacer, Window
from agentmesh.mesh.quic_tls import (
    client_configuration,
    make_certificate,
    server_configuration,
)

CLIENT, SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)


class Wire:
    """A client and a server engine, connected, in virtual time."""

    def __init__(self) -> None:
        self.now = 100.0
        key = NodeKey.generate()
        self.certificate: x509.Certificate = make_certificate(key)
        self.client = Engine(configuration=client_configuration(loopback=False))
        self.server = Engine(
            configuration=server_configuration(key, self.certificate, loopback=False),
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.client.connect(SERVER, now=self.now)
        for _ in range(4):
            self.exchange()

    def send(self, engine: Engine) -> list[bytes]:
        engine.pacer.turn_left = PACKETS_PER_TURN
        return [data for data, _ in engine.datagrams_to_send(now=self.now)]

    def exchange(self) -> None:
        self.now += 0.01
        for data in self.send(self.client):
            self.server.receive_datagram(data, CLIENT, now=self.now)
        for data in self.send(self.server):
            self.client.receive_datagram(data, SERVER, now=self.now)

    def delivered(self) -> int:
        """Bytes that the server's application has been given."""
        count = 0
        while (event := self.server.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                count += len(event.data)
        return count


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_the_overrides_of_private_parts_are_still_called(wire: Wire) -> None:
    assert wire.client._loss._pacer is wire.client.pacer
    assert wire.client._remote_max_streams_bidi == MAX_STREAMS_PER_PEER
    assert wire.client._remote_max_streams_uni == 0
    assert wire.client._remote_max_data == INITIAL_CONNECTION_WINDOW_BYTES


def test_nothing_read_means_nothing_granted_and_what_is_read_is_granted_again(wire: Wire) -> None:
    stream_id = wire.client.open_stream()
    wire.client.send_stream_data(stream_id, bytes(2 * INITIAL_CONNECTION_WINDOW_BYTES))
    for _ in range(60):
        wire.exchange()
    given = wire.delivered()
    granted = wire.client._remote_max_data
    assert 0 < given < granted == INITIAL_CONNECTION_WINDOW_BYTES
    wire.server.consumed(stream_id, given)
    for _ in range(60):
        wire.exchange()
    assert wire.client._remote_max_data > granted
    assert wire.delivered() > 0


def test_a_reset_settles_what_never_arrived(wire: Wire) -> None:
    stream_id = wire.client.open_stream()
    wire.client.send_stream_data(stream_id, bytes(8_000))
    wire.now += 0.01
    sent = wire.send(wire.client)
    wire.server.receive_datagram(sent[0], CLIENT, now=wire.now)  # the rest is lost
    given = wire.delivered()
    wire.server.consumed(stream_id, given)
    wire.client.reset_stream(stream_id, 1)
    wire.exchange()
    wire.exchange()
    assert 0 < given < 8_000
    wire.server.receiving_is_over(stream_id, unread=0)
    assert wire.server._connection_window.consumed == wire.server._local_max_data.used > given


def test_what_waits_unread_at_a_reset_is_settled_when_it_is_given_up(wire: Wire) -> None:
    stream_id = wire.client.open_stream()
    wire.client.send_stream_data(stream_id, bytes(5_000))
    wire.exchange()
    unread = wire.delivered()
    wire.client.reset_stream(stream_id, 1)
    wire.exchange()
    wire.server.receiving_is_over(stream_id, unread=unread)
    assert wire.server._connection_window.consumed == wire.server._local_max_data.used - unread
    wire.server.consumed_late(unread)
    assert wire.server._connection_window.consumed == wire.server._local_max_data.used


def test_the_peer_that_closes_is_known_at_once(wire: Wire) -> None:
    wire.client.close(reason_phrase="bye")
    wire.exchange()
    ended = wire.server.ended_by_peer
    assert ended is not None
    assert ended.reason_phrase == "bye"


def test_a_window_moves_in_steps_and_doubles_with_use_up_to_its_limit() -> None:
    window = Window(100, 400)
    assert window.consume(49) is None
    assert window.consume(1) == 150
    assert window.consume(150) == 400  # 200 read: two whole windows, so it doubles
    grants = [limit for _ in range(50) if (limit := window.consume(100)) is not None]
    assert grants == sorted(grants)
    assert grants[-1] - window.consumed <= 400
    assert window.size == 400


def test_the_pacer_lets_a_burst_pass_and_then_keeps_the_rate() -> None:
    pacer = Pacer(max_datagram_size=1_000)
    pacer.update_rate(congestion_window=100_000, smoothed_rtt=1.0)  # 125 packets a second, with the RFC's quarter
    passed, now = 0, 10.0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        passed += 1
    assert passed == BURST_PACKETS
    for _ in range(1_000):
        now += 0.01
        while pacer.next_send_time(now) is None:
            pacer.turn_left = PACKETS_PER_TURN
            pacer.update_after_send(now)
            passed += 1
    assert 1_250 <= passed <= 1_250 + BURST_PACKETS + 1


def test_a_small_window_is_still_worth_the_first_burst() -> None:
    pacer = Pacer(max_datagram_size=1_000)
    pacer.update_rate(congestion_window=4_000, smoothed_rtt=1.0)
    passed = 0
    while pacer.next_send_time(10.0) is None:
        pacer.update_after_send(10.0)
        passed += 1
    assert passed == INITIAL_BURST_PACKETS


def test_a_turn_is_bounded_however_fast_the_path_is() -> None:
    pacer = Pacer(max_datagram_size=1_000)
    pacer.update_rate(congestion_window=10**9, smoothed_rtt=0.001)
    passed = 0
    while pacer.next_send_time(10.0) is None:
        pacer.update_after_send(10.0)
        passed += 1
    assert passed == PACKETS_PER_TURN
