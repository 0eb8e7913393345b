"""SWIM-style failure detection over the connections that exist. Owns: who is alive, suspect or dead, as seen from here.

Nothing is disseminated through the mesh: each node judges only its own links and asks a few others before it condemns
(SWIM, Das et al. 2002, section 4). So one overloaded node can at worst misjudge its own neighbours, never the mesh's, and
a new connection always makes a peer alive again. Local health is Lifeguard's idea (Dadgar et al. 2017): who hears nobody
doubts itself first. Must not know: why a peer is connected, records, the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import ClosePeer, Effect, NodeId, PeerState, ReportPeer, SendMessage
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import GONE_PEERS, PROBES_FOR_OTHERS
from agentmesh.mesh.logic.messages import Ping, Pong, ProbeRequest, ProbeResult, Refutation, Suspicion

SILENT = "it has been silent too long"


@dataclass(slots=True)
class _Peer:
    """One connected peer. `heard_ms`: anything received from it; `cleared_ms`: that, or a refutation in its name."""

    heard_ms: int
    cleared_ms: int
    pinged_ms: int
    incarnation: int = 0
    state: PeerState = PeerState.ALIVE
    vouched_ms: int = -1
    clock_offset_ms: int = 0
    passed_on: int = -1  # newest incarnation whose suspicion we passed on to it
    tellers: dict[NodeId, None] = field(default_factory=dict[NodeId, None])  # who told us of that suspicion


@dataclass(slots=True)
class _Gone:
    since_ms: int
    state: PeerState


class Membership:
    """The failure detector of one node. Effects go to `out`; `deadline_ms` says when `tick` is due."""

    def __init__(
        self, self_id: NodeId, config: GossipConfig, rng: Chance, is_neighbour: Callable[[NodeId], bool]
    ) -> None:
        self._self_id = self_id
        self._is_neighbour = is_neighbour
        self._config = config
        self._rng = rng
        self._peers: dict[NodeId, _Peer] = {}
        self._gone: dict[NodeId, _Gone] = {}
        self._asked: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}  # (target, asker) -> (sequence, deadline)
        self._sequence = 0
        self._ticked_ms = 0
        self._cadence_ms = max(1, config.probe_every_ms // 2)
        self.incarnation = 0
        self.deadline_ms: int | None = None

    # ------------------------------------------------------------------ links

    def connected(self, peer: NodeId, now_ms: int, out: list[Effect]) -> None:
        """A link is up (again): whatever was thought of the peer before, it is alive."""
        self._start(now_ms)
        # Probes of different nodes and links are spread by chance, or a thousand nodes would probe in step.
        pinged_ms = now_ms - self._rng.randrange(self._cadence_ms)
        self._peers[peer] = _Peer(now_ms, now_ms, pinged_ms)
        self._gone.pop(peer, None)
        out.append(ReportPeer(peer, PeerState.ALIVE))

    def lost(self, peer: NodeId, clean: bool, now_ms: int, out: list[Effect]) -> None:
        """The link ended. Unless it was meant to (`clean`), the peer is suspect until it comes back or is given up."""
        known = self._peers.pop(peer, None)
        if known is None or clean:
            return
        self._remember_gone(peer, PeerState.SUSPECT, now_ms)
        if known.state is PeerState.ALIVE:
            out.append(ReportPeer(peer, PeerState.SUSPECT))

    def heard(self, peer: NodeId, now_ms: int, out: list[Effect]) -> None:
        """Any message is a sign of life."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.heard_ms = known.cleared_ms = now_ms
        if known.state is not PeerState.ALIVE:
            known.state = PeerState.ALIVE
            out.append(ReportPeer(peer, PeerState.ALIVE))
        if self._asked:
            self._answer_askers(peer, known, out)

    # ------------------------------------------------------------------ messages

    def on_ping(self, peer: NodeId, message: Ping, now_ms: int, out: list[Effect]) -> None:
        self._learn(peer, message, now_ms)
        out.append(SendMessage(peer, Pong(message.sequence, self.incarnation, now_ms, self._is_neighbour(peer))))

    def on_pong(self, peer: NodeId, message: Pong, now_ms: int, out: list[Effect]) -> None:
        self._learn(peer, message, now_ms)

    def on_probe_request(self, peer: NodeId, message: ProbeRequest, now_ms: int, out: list[Effect]) -> None:
        """Probe for another. Who is not connected to the target says nothing: it knows nothing."""
        target = self._peers.get(message.target)
        if target is None or message.target == peer:
            return
        if now_ms - target.heard_ms < self._config.probe_every_ms:
            out.append(SendMessage(peer, ProbeResult(message.sequence, message.target, True, target.incarnation)))
        elif len(self._asked) < PROBES_FOR_OTHERS:
            self._asked[message.target, peer] = (message.sequence, now_ms + self._config.suspect_after_ms)
            self._ping(message.target, target, now_ms, out)

    def on_probe_result(self, peer: NodeId, message: ProbeResult, now_ms: int, out: list[Effect]) -> None:
        target = self._peers.get(message.target)
        if target is not None and message.alive:
            target.vouched_ms = now_ms

    def on_suspicion(self, peer: NodeId, message: Suspicion, now_ms: int, out: list[Effect]) -> None:
        if message.node == self._self_id:
            self._refute(peer, message, out)
            return
        target = self._peers.get(message.node)
        if target is None or message.node == peer or len(target.tellers) >= PROBES_FOR_OTHERS:
            return
        target.tellers[peer] = None
        if message.incarnation > target.passed_on:
            target.passed_on = message.incarnation
            out.append(SendMessage(message.node, message))

    def on_refutation(self, peer: NodeId, message: Refutation, now_ms: int, out: list[Effect]) -> None:
        """A newer incarnation clears a suspect; it is suspected anew, at that incarnation, if it stays silent here."""
        target = self._peers.get(message.node)
        if target is None or message.incarnation <= target.incarnation:
            return
        target.incarnation = message.incarnation
        target.cleared_ms = target.vouched_ms = now_ms
        if target.state is PeerState.SUSPECT:
            target.state = PeerState.ALIVE
            out.append(ReportPeer(message.node, PeerState.ALIVE))
        out.extend(SendMessage(teller, message) for teller in target.tellers if teller in self._peers)
        target.tellers.clear()

    # ------------------------------------------------------------------ time

    def tick(self, now_ms: int, out: list[Effect]) -> tuple[NodeId, ...]:
        """Probe, suspect, condemn. Returns the peers whose link was given up (their ClosePeer is in `out`)."""
        if self.deadline_ms is None or now_ms < self.deadline_ms:
            return ()
        self._forgive_own_stall(now_ms)
        self.deadline_ms = now_ms + self._cadence_ms
        healthy = self._hears_someone(now_ms)
        closed: list[NodeId] = []
        probe_every_ms = self._config.probe_every_ms
        for node, peer in self._peers.items():
            if now_ms - peer.heard_ms >= probe_every_ms and self._probe(node, peer, healthy, now_ms, out):
                closed.append(node)
        for node in closed:
            del self._peers[node]
        if self._asked:
            self._give_up_asked(now_ms, out)
        if self._gone:
            self._condemn_gone(healthy, now_ms, out)
        return tuple(closed)

    def states(self) -> Mapping[NodeId, PeerState]:
        """Connected peers, and those lately lost."""
        states = {node: gone.state for node, gone in self._gone.items()}
        states.update((node, peer.state) for node, peer in self._peers.items())
        return states

    def clock_offset_ms(self) -> int:
        """The median of how far the peers' clocks are ahead of ours (one way trip ignored); 0 without peers."""
        offsets = sorted(peer.clock_offset_ms for peer in self._peers.values())
        return offsets[len(offsets) // 2] if offsets else 0

    # ------------------------------------------------------------------ parts

    def _start(self, now_ms: int) -> None:
        if self.deadline_ms is None:
            # Times as incarnations: a restarted node needs no memory to be newer than what it was.
            self.incarnation = max(self.incarnation, now_ms)
            self._ticked_ms = now_ms
            self.deadline_ms = now_ms + self._rng.randrange(self._cadence_ms) + 1

    def _forgive_own_stall(self, now_ms: int) -> None:
        """A laptop that slept, or a loop that hung, heard nobody: that is our silence, not theirs."""
        late_ms = now_ms - self._ticked_ms - self._cadence_ms
        self._ticked_ms = now_ms
        if late_ms >= self._config.suspect_after_ms:
            for peer in self._peers.values():
                peer.heard_ms = min(now_ms, peer.heard_ms + late_ms)
                peer.cleared_ms = min(now_ms, peer.cleared_ms + late_ms)

    def _hears_someone(self, now_ms: int) -> bool:
        after_ms = now_ms - self._config.suspect_after_ms
        return any(peer.heard_ms > after_ms for peer in self._peers.values())

    def _probe(self, node: NodeId, peer: _Peer, healthy: bool, now_ms: int, out: list[Effect]) -> bool:
        """One silent peer's turn; True if its link was given up."""
        config = self._config
        if now_ms - peer.pinged_ms >= config.probe_every_ms:
            self._ping(node, peer, now_ms, out)
        if now_ms - peer.cleared_ms >= config.suspect_after_ms and peer.state is PeerState.ALIVE:
            peer.state = PeerState.SUSPECT
            out.append(ReportPeer(node, PeerState.SUSPECT))
            if healthy:
                self._ask_others(node, peer, now_ms, out)
        silent_ms = now_ms - peer.heard_ms
        vouched = peer.vouched_ms > peer.heard_ms
        # Others still reach it: our link may recover, so it is given twice the time, and is not condemned then.
        if silent_ms < config.dead_after_ms * (2 if vouched else 1):
            return False
        condemned = healthy and not vouched
        self._remember_gone(node, PeerState.DEAD if condemned else PeerState.SUSPECT, now_ms)
        if condemned:
            out.append(ReportPeer(node, PeerState.DEAD))
        out.append(ClosePeer(node, SILENT))
        return True

    def _ping(self, node: NodeId, peer: _Peer, now_ms: int, out: list[Effect]) -> None:
        self._sequence += 1
        peer.pinged_ms = now_ms
        out.append(SendMessage(node, Ping(self._sequence, self.incarnation, now_ms, self._is_neighbour(node))))

    def _ask_others(self, node: NodeId, peer: _Peer, now_ms: int, out: list[Effect]) -> None:
        after_ms = now_ms - self._config.suspect_after_ms
        others = [other for other, state in self._peers.items() if other != node and state.heard_ms > after_ms]
        for other in self._rng.sample(others, min(self._config.indirect_probes, len(others))):
            self._sequence += 1
            out.append(SendMessage(other, ProbeRequest(self._sequence, node)))
            out.append(SendMessage(other, Suspicion(node, peer.incarnation)))

    def _learn(self, node: NodeId, message: Ping | Pong, now_ms: int) -> None:
        peer = self._peers.get(node)
        if peer is not None:
            peer.incarnation = max(peer.incarnation, message.incarnation)
            peer.clock_offset_ms = message.now_ms - now_ms

    def _refute(self, peer: NodeId, message: Suspicion, out: list[Effect]) -> None:
        if message.incarnation < self.incarnation:
            out.append(SendMessage(peer, Refutation(self._self_id, self.incarnation)))
            return
        self.incarnation = message.incarnation + 1
        out.extend(SendMessage(node, Refutation(self._self_id, self.incarnation)) for node in self._peers)

    def _answer_askers(self, target: NodeId, known: _Peer, out: list[Effect]) -> None:
        for key in [key for key in self._asked if key[0] == target]:
            sequence, _ = self._asked.pop(key)
            if key[1] in self._peers:
                out.append(SendMessage(key[1], ProbeResult(sequence, target, True, known.incarnation)))

    def _give_up_asked(self, now_ms: int, out: list[Effect]) -> None:
        for key in [key for key, (_, deadline_ms) in self._asked.items() if deadline_ms <= now_ms]:
            sequence, _ = self._asked.pop(key)
            if key[0] in self._peers and key[1] in self._peers:
                incarnation = self._peers[key[0]].incarnation
                out.append(SendMessage(key[1], ProbeResult(sequence, key[0], False, incarnation)))

    def _remember_gone(self, node: NodeId, state: PeerState, now_ms: int) -> None:
        self._gone.pop(node, None)
        while len(self._gone) >= GONE_PEERS:
            del self._gone[next(iter(self._gone))]
        self._gone[node] = _Gone(now_ms, state)

    def _condemn_gone(self, healthy: bool, now_ms: int, out: list[Effect]) -> None:
        if not healthy:
            return
        for node, gone in self._gone.items():
            if gone.state is PeerState.SUSPECT and now_ms - gone.since_ms >= self._config.dead_after_ms:
                gone.state = PeerState.DEAD
                out.append(ReportPeer(node, PeerState.DEAD))
