"""HyParView's shuffle: nodes exchange samples of their views, so that passive views stay fresh and mixed.

Owns when to shuffle, what to tell, and the way back of replies: the origin of a walk may be behind NAT, so a reply goes
back hop by hop. Must not know links; the overlay gives its active view and takes what is learnt into the address book.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from agentmesh.mesh.logic.addressbook import AddressBook
from agentmesh.mesh.logic.chance import Chance
from agentmesh.mesh.logic.events import Effect, NodeId, SendMessage
from agentmesh.mesh.logic.gossip_config import GossipConfig
from agentmesh.mesh.logic.limits import ACTIVE_WALK, PASSIVE_WALK, SHUFFLE_ACTIVE, SHUFFLE_PASSIVE, SHUFFLE_ROUTES
from agentmesh.mesh.logic.messages import PeerEntry, Shuffle, ShuffleReply

_ENTRIES = 2 * (SHUFFLE_ACTIVE + SHUFFLE_PASSIVE + 1)  # read from one message


class Shuffler:
    """`active` is the overlay's own dict; `is_small` says whether the mesh is to be fully connected."""

    def __init__(
        self,
        self_id: NodeId,
        active: Mapping[NodeId, PeerEntry],
        is_small: Callable[[], bool],
        *,
        book: AddressBook,
        config: GossipConfig,
        rng: Chance,
    ) -> None:
        self._self_id = self_id
        self._active = active
        self._is_small = is_small
        self._book = book
        self._config = config
        self._rng = rng
        self._routes: dict[NodeId, NodeId] = {}  # origin of a walk -> whom its reply goes to
        self._every_ms = config.shuffle_every_ms
        self.due_ms = 0

    def start(self, now_ms: int) -> None:
        self.due_ms = now_ms + self._rng.randrange(self._every_ms)

    def hasten(self, now_ms: int) -> None:
        """The neighbours changed: views are worth mixing again."""
        self._every_ms = self._config.shuffle_every_ms
        self.due_ms = min(self.due_ms, now_ms + self._every_ms)

    def shuffle(self, entry: PeerEntry, now_ms: int, out: list[Effect]) -> None:
        """Begin a walk. In a quiet mesh they become rarer."""
        every_ms = self._every_ms
        self.due_ms = now_ms + every_ms - self._rng.randrange(every_ms // 4 + 1)
        self._every_ms = min(self._config.shuffle_every_max_ms, every_ms + every_ms // 2)
        target = list(self._active)[self._rng.randrange(len(self._active))]
        out.append(SendMessage(target, Shuffle(entry, self.sample(target), PASSIVE_WALK)))

    def sample(self, receiver: NodeId) -> tuple[PeerEntry, ...]:
        """Some of the views, without the receiver; all dialable neighbours while the mesh is small."""
        near = [entry for entry in self._active.values() if entry.node != receiver and entry.dialable]
        far = [entry for entry in self._book.passive() if entry.node != receiver]
        count = len(near) if self._is_small() else SHUFFLE_ACTIVE
        near = self._rng.sample(near, min(count, len(near)))
        return (*near, *self._rng.sample(far, min(SHUFFLE_PASSIVE, len(far))))

    def on_shuffle(self, peer: NodeId, message: Shuffle, out: list[Effect]) -> bool:
        """Pass a walk on, or answer it; True if it ended here."""
        origin = message.origin.node
        if origin == self._self_id:
            return False
        others = [node for node in self._active if node not in (peer, origin)]
        if message.ttl <= 1 or not others:
            out.append(SendMessage(peer, ShuffleReply(self.sample(origin), origin)))
            return True
        self._routes.pop(origin, None)
        while len(self._routes) >= SHUFFLE_ROUTES:
            del self._routes[next(iter(self._routes))]
        self._routes[origin] = peer
        walk = Shuffle(message.origin, message.entries[:_ENTRIES], min(message.ttl, ACTIVE_WALK) - 1)
        out.append(SendMessage(others[self._rng.randrange(len(others))], walk))
        return False

    def on_reply(self, message: ShuffleReply, links: Container[NodeId], out: list[Effect]) -> bool:
        """Pass a reply back; True if it is for this node."""
        if message.origin in (b"", self._self_id):
            return True
        back = self._routes.pop(message.origin, None)
        if back is not None and back in links:
            out.append(SendMessage(back, ShuffleReply(message.entries[:_ENTRIES], message.origin)))
        return False

    def integrate(self, entries: tuple[PeerEntry, ...]) -> None:
        for entry in entries[:_ENTRIES]:
            if entry.node not in self._active:
                self._book.add_passive(entry)
