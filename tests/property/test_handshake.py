"""The handshake's machines: in every case both sides end, each with a sentence or a proven peer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.core.errors import AgentMeshError, NotAdmitted, ProtocolError, TokenError
from agentmesh.core.units import DAY_MS, HOUR_MS, MINUTE_MS
from agentmesh.mesh.logic.certificate import Chain, Role, leaf_of
from agentmesh.mesh.logic.clocks import ClockView, clock_complaint
from agentmesh.mesh.logic.control_messages import parse_answer, parse_request
from agentmesh.mesh.logic.handshake import (
    ClientConfig,
    ClientHandshake,
    Effect,
    Failed,
    Introduction,
    JoinAsked,
    JoinCredential,
    MemberCredential,
    Proven,
    Send,
    ServerConfig,
    ServerHandshake,
    Welcomed,
)
from agentmesh.mesh.logic.handshake_common import parse_message
from agentmesh.mesh.logic.handshake_messages import (
    Auth,
    Challenge,
    ClockMismatch,
    Hello,
    InviteRefused,
    Refusal,
    RefusalCode,
    RefusedByPeer,
    Welcome,
)
from agentmesh.mesh.logic.issuing import issue_admission
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.trust import RevokedChain, Trust
from tests.fakes.family import NOW_MS, Family, cheap_key
from tests.sim.keys import cheap_verify

INTRO = Introduction("laptop", ("192.0.2.7:4711",), True)


def _family() -> Family:
    family = Family()
    for name in ("ann", "bob"):
        family.join(name)
    return family


FAMILY = _family()


@dataclass
class Table:
    """Two machines and what passed between them. Fields bend one side."""

    client: str = "bob"
    server: str = "ann"
    client_ms: int = NOW_MS
    server_ms: int = NOW_MS
    client_versions: tuple[int, int] = (1, 1)
    server_versions: tuple[int, int] = (1, 1)
    client_chain: Chain | None = None
    server_chain: Chain | None = None
    invite: str = ""
    granted: Chain = ()
    mesh: bytes = FAMILY.mesh
    dialled: bytes = b""
    trust: Trust = field(default_factory=FAMILY.trust)
    sent: list[bytes] = field(default_factory=list[bytes])

    def client_machine(self) -> ClientHandshake:
        key = FAMILY.keys.get(self.client) or cheap_key(self.client)
        if self.invite:
            invite_key, invite_chain = FAMILY.invites[self.invite]
            credential: MemberCredential | JoinCredential = JoinCredential(invite_chain, invite_key.sign)
        else:
            credential = MemberCredential(self.client_chain or FAMILY.chains[self.client])
        config = ClientConfig(
            mesh=self.mesh,
            key=key.public,
            sign=key.sign,
            server=self.dialled or FAMILY.key(self.server),
            nonce=b"c" * 16,
            credential=credential,
            introduction=INTRO,
            clock=ClockView(NOW_MS - HOUR_MS),
            versions=self.client_versions,
        )
        return ClientHandshake(config, FAMILY.trust().check_presented)

    def server_machine(self, nonce: bytes = b"s" * 16) -> ServerHandshake:
        return ServerHandshake(
            ServerConfig(
                FAMILY.mesh, FAMILY.key(self.server), nonce, ClockView(NOW_MS - HOUR_MS), self.server_versions
            ),
            self.trust.check_presented,
            lambda chain, now_ms: self.trust.check_presented(chain, now_ms, role=Role.INVITE),
            cheap_verify,
        )

    def play(self) -> tuple[Effect | None, Effect | None]:
        """Run to the end; the last effects of client and server that were not sent."""
        client, server = self.client_machine(), self.server_machine()
        ends: list[Effect | None] = [None, None]
        to_server = self._outcome(client.start(), ends, 0)
        while to_server:
            to_client: list[bytes] = []
            for data in to_server:
                to_client += self._outcome(self._answered(server, server.handle(data, self.server_ms)), ends, 1)
            to_server = [
                out for data in to_client for out in self._outcome(client.handle(data, self.client_ms), ends, 0)
            ]
        return ends[0], ends[1]

    def _answered(self, server: ServerHandshake, effects: list[Effect]) -> list[Effect]:
        """Admission's part: let in whom the machine proved."""
        for effect in list(effects):
            if isinstance(effect, Proven | JoinAsked) and effect.error is None:
                effects = effects + server.welcome(
                    self.server_chain or FAMILY.chains[self.server],
                    self.granted,
                    Introduction("server", ("192.0.2.9:1",), True),
                    mesh_name="home",
                    observed="198.51.100.3:5000",
                    peers=(PeerEntry(FAMILY.key("founder"), ("192.0.2.1:1", "0.0.0.0:1"), True),),
                    now_ms=self.server_ms,
                )
        return effects

    def _outcome(self, effects: list[Effect], ends: list[Effect | None], side: int) -> list[bytes]:
        sends = [effect.data for effect in effects if isinstance(effect, Send)]
        self.sent += sends
        for effect in effects:
            if not isinstance(effect, Send):
                ends[side] = effect
        return sends


def _client_error(table: Table) -> AgentMeshError:
    client, _ = table.play()
    assert isinstance(client, Failed), client
    return client.error


def test_two_members_know_each_other_afterwards() -> None:
    client, server = Table().play()
    assert isinstance(client, Welcomed)
    assert isinstance(server, Proven)
    assert (client.facts.node, client.facts.introduction.name) == (FAMILY.key("ann"), "server")
    assert (server.facts.node, server.facts.introduction) == (FAMILY.key("bob"), INTRO)
    assert client.observed == "198.51.100.3:5000"
    assert client.peers == (PeerEntry(FAMILY.key("founder"), ("192.0.2.1:1",), True),)
    assert client.granted == ()


def test_a_joiner_gets_a_membership_that_carries_its_own_consent() -> None:
    first = Table(client="eve", invite="of founder", server="ann")
    _, asked = first.play()
    assert isinstance(asked, JoinAsked)
    assert asked.error is None
    chain = issue_admission(
        asked.invite_chain,
        FAMILY.chains["ann"],
        FAMILY.keys["ann"].sign,
        joiner=asked.facts.node,
        proof=asked.proof,
        now_ms=NOW_MS,
    )
    client, _ = Table(client="eve", invite="of founder", server="ann", granted=chain).play()
    assert isinstance(client, Welcomed)
    assert leaf_of(client.granted).subject == cheap_key("eve").public


def test_the_server_says_nothing_of_itself_before_the_client_has_proved_itself() -> None:
    table = Table(mesh=cheap_key("foreign").public)
    table.play()
    messages = [parse_message(data) for data in table.sent]
    assert [type(m) for m in messages] == [Hello, Challenge, Auth, Refusal]
    for data in (table.sent[1], table.sent[3]):
        for secret in (FAMILY.mesh, FAMILY.key("ann"), b"home", b"server"):
            assert secret not in data


def test_a_client_of_another_mesh_is_told_so() -> None:
    error = _client_error(Table(mesh=cheap_key("foreign").public))
    assert isinstance(error, RefusedByPeer)
    assert (error.refusal, error.message) == (RefusalCode.FOREIGN_MESH, "The node at this address is on another mesh.")


@pytest.mark.parametrize(
    ("client", "server", "agreed"),
    [((1, 2), (1, 1), 1), ((1, 1), (1, 2), 1), ((1, 2), (2, 3), 2), ((1, 3), (1, 3), 3)],
)
def test_overlapping_ranges_of_versions_meet_at_the_newest_common_one(
    client: tuple[int, int], server: tuple[int, int], agreed: int
) -> None:
    end, proven = Table(client_versions=client, server_versions=server).play()
    assert isinstance(end, Welcomed)
    assert isinstance(proven, Proven)
    assert (end.facts.version, proven.facts.version) == (agreed, agreed)


def test_versions_without_overlap_say_that_one_side_must_be_updated() -> None:
    for versions in ((2, 3), (0, 0)):
        error = _client_error(Table(client_versions=versions))
        assert isinstance(error, RefusedByPeer)
        assert error.refusal == RefusalCode.VERSION
        assert "update the older one" in error.message


def test_fields_of_a_later_version_are_ignored() -> None:
    server = Table().server_machine()
    hello = msgspec.msgpack.encode([1, 1, 1, b"c" * 16, {"new": [1, 2]}])
    assert isinstance(server.handle(hello, NOW_MS)[0], Send)


@pytest.mark.parametrize("hours", [3, -3])
def test_clocks_that_differ_are_found_before_the_client_says_who_it_is(hours: int) -> None:
    table = Table(server_ms=NOW_MS + hours * HOUR_MS)
    error = _client_error(table)
    assert isinstance(error, ClockMismatch)
    assert "3 hours" in error.message
    assert not any(isinstance(parse_message(data), Auth) for data in table.sent)


def test_a_server_compares_clocks_too() -> None:
    client, server = Table().client_machine(), Table().server_machine()
    challenge = server.handle(client.start()[0].data, NOW_MS)[0].data  # type: ignore[union-attr]
    auth = client.handle(challenge, NOW_MS)[0].data  # type: ignore[union-attr]
    refusal = server.handle(auth, NOW_MS + DAY_MS)
    assert isinstance(refusal[1], Failed)
    assert "24 hours" in refusal[1].error.message
    end = client.handle(refusal[0].data, NOW_MS)[0]  # type: ignore[union-attr]
    assert isinstance(end, Failed)
    assert isinstance(end.error, ClockMismatch)


def test_who_is_off_is_said_as_far_as_it_is_known() -> None:
    def complain(own_ms: int, other_ms: int, view: ClockView) -> str:
        return clock_complaint(own_ms, other_ms, view, own="this machine's clock", other="the peer's clock") or ""

    view = ClockView(NOW_MS)
    assert complain(NOW_MS, NOW_MS + 15 * MINUTE_MS, view) == ""
    assert complain(NOW_MS - DAY_MS, NOW_MS, view).startswith("This machine's clock is 24 hours behind")
    assert complain(NOW_MS, NOW_MS - 3 * DAY_MS, view).startswith("The peer's clock is 3 days behind")
    assert "One of them is wrong" in complain(NOW_MS, NOW_MS + HOUR_MS, view)
    agreed = replace(view, agreed=True)
    assert complain(NOW_MS, NOW_MS + 20 * MINUTE_MS, agreed).startswith("The peer's clock is 20 minutes ahead")
    assert "a time out of range" in complain(NOW_MS, 2**62, view)


def test_a_node_that_dials_itself_notices_on_both_sides() -> None:
    with pytest.raises(NotAdmitted, match="own"):
        Table(client="ann", server="ann").client_machine()
    error = _client_error(Table(client="ann", server="ann", dialled=FAMILY.key("bob")))
    assert isinstance(error, RefusedByPeer)
    assert error.refusal == RefusalCode.SELF


def test_a_proof_for_one_server_is_no_proof_for_another() -> None:
    """A server in the middle that passes messages on to another one gets nowhere."""
    error = _client_error(Table(dialled=FAMILY.key("founder")))
    assert isinstance(error, RefusedByPeer)
    assert error.refusal == RefusalCode.BAD_SIGNATURE


def test_a_recorded_handshake_cannot_be_played_again() -> None:
    table = Table()
    table.play()
    hello, auth = table.sent[0], table.sent[2]
    again = table.server_machine(nonce=b"t" * 16)
    again.handle(hello, NOW_MS)
    end = again.handle(auth, NOW_MS)[-1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, RefusedByPeer)
    assert end.error.refusal == RefusalCode.BAD_SIGNATURE
    challenge, welcome = table.sent[1], table.sent[3]
    client = table.client_machine()
    client.start()
    assert isinstance(client.handle(welcome, NOW_MS)[0], Failed)
    assert client.handle(challenge, NOW_MS) == []


@pytest.mark.parametrize("chain_of", ["founder", "bob"])
def test_a_server_that_is_no_member_or_shows_anothers_chain_is_not_believed(chain_of: str) -> None:
    error = _client_error(Table(server_chain=FAMILY.chains[chain_of]))
    assert isinstance(error, NotAdmitted)
    assert "somebody else's" in error.message
    assert isinstance(_client_error(Table(server_chain=FAMILY.chains["ann"][:1])), NotAdmitted)


def test_a_client_with_somebody_elses_chain_is_refused() -> None:
    error = _client_error(Table(client_chain=FAMILY.chains["founder"]))
    assert isinstance(error, RefusedByPeer)
    assert error.refusal == RefusalCode.NOT_A_MEMBER


def test_a_revoked_client_is_handed_over_as_such() -> None:
    trust = FAMILY.trust()
    trust.consider(FAMILY.revocation("root", "bob"), NOW_MS)
    _, server = Table(trust=trust).play()
    assert isinstance(server, Proven)
    assert isinstance(server.error, RevokedChain)


def test_a_membership_for_somebody_else_is_not_taken() -> None:
    error = _client_error(Table(granted=FAMILY.chains["ann"]))
    assert isinstance(error, ProtocolError)
    missing = _client_error(Table(client="eve", invite="of founder"))
    assert isinstance(missing, ProtocolError)


def test_a_refused_invite_is_a_token_error_and_its_sentence_cannot_forge_a_line() -> None:
    client = Table(client="eve", invite="of founder").client_machine()
    client.start()
    refusal = msgspec.msgpack.encode(Refusal(RefusalCode.INVITE_USED_UP, "used\x1b[2J\nup" + "x" * 999, NOW_MS))
    end = client.handle(refusal, NOW_MS)[0]
    assert isinstance(end, Failed)
    assert isinstance(end.error, InviteRefused)
    assert isinstance(end.error, TokenError)
    assert end.error.message.isprintable()
    assert len(end.error.message) <= 300


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_bent_message_never_lets_anybody_in(data: st.DataObject) -> None:
    """One byte of one message is changed on its way: the client's proof must not survive that."""
    table = Table()
    client, server = table.client_machine(), table.server_machine()
    hello = client.start()[0].data  # type: ignore[union-attr]
    auth = client.handle(server.handle(hello, NOW_MS)[0].data, NOW_MS)[0].data  # type: ignore[union-attr]
    message = parse_message(auth)
    assert isinstance(message, Auth)
    raw = bytearray(auth)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    effects = server.handle(bytes(raw), NOW_MS)
    for effect in effects:
        if isinstance(effect, Proven) and effect.error is None:
            # What the node says of itself is not signed: the channel is. Who it is cannot have changed.
            assert (effect.facts.node, effect.facts.chain) == (FAMILY.key("bob"), FAMILY.chains["bob"])


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200), after=st.integers(0, 1))
def test_any_bytes_end_the_handshake_with_our_own_errors(data: bytes, after: int) -> None:
    table = Table()
    client, server = table.client_machine(), table.server_machine()
    hello = client.start()[0].data  # type: ignore[union-attr]
    if after:
        client.handle(server.handle(hello, NOW_MS)[0].data, NOW_MS)  # type: ignore[union-attr]
    for machine in (client, server):
        for effect in machine.handle(data, NOW_MS):
            assert not isinstance(effect, Welcomed | Proven | JoinAsked)
    try:
        parse_message(data)
    except ProtocolError:
        return


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_control_request_or_answer_raise_only_our_own_errors(data: bytes) -> None:
    for parse in (parse_request, parse_answer):
        try:
            parse(data)
        except ProtocolError:
            continue


def test_a_welcome_out_of_turn_is_not_taken() -> None:
    client = Table().client_machine()
    client.start()
    welcome = Welcome(FAMILY.chains["ann"], (), "x", "y", (), False, "", (), NOW_MS)
    end = client.handle(msgspec.msgpack.encode(welcome), NOW_MS)[0]
    assert isinstance(end, Failed)
    assert isinstance(end.error, ProtocolError)
