"""Two snapshots reconciling to the end of one session, message by message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.frames import encode_message
from agentmesh.mesh.logic.messages import Reconcile
from agentmesh.mesh.logic.reconcile import Step, begin, respond
from agentmesh.mesh.logic.snapshot import Snapshot

NOW_MS = 1_800_000_000_000
WINDOW_MS = 48 * HOUR_MS
SALT = bytes(range(16))


@dataclass(frozen=True, slots=True)
class Post:
    """A record as reconciliation sees it."""

    id: bytes
    timestamp_ms: int
    order_class: int = 1
    expires_ms: int = NOW_MS + WINDOW_MS


def snapshot(posts: Sequence[Post], unwanted: Sequence[bytes] = ()) -> Snapshot:
    return Snapshot(sorted(posts, key=lambda post: (post.order_class, post.timestamp_ms, post.id)), unwanted)


@dataclass
class Outcome:
    """What a whole session did. Side 0 began it."""

    sent: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    bodies: list[bytes] = field(default_factory=list[bytes])
    done: list[bool] = field(default_factory=lambda: [False, False])
    more: bool = False

    @property
    def wire_bytes(self) -> int:
        return sum(len(encode_message(Reconcile(2**32 - 1, body))) for body in self.bodies)


def run(one: Snapshot, other: Snapshot, *, salt: bytes = SALT, clocks: tuple[int, int] = (NOW_MS, NOW_MS)) -> Outcome:
    """Play one session. Fails when it does not end."""
    outcome = Outcome()
    sides = (one, other)
    steps: list[Step | None] = [begin(one, salt, clocks[0]), None]
    turn, body = 0, steps[0].reply if steps[0] else None
    while body is not None:
        assert len(outcome.bodies) < 20, "the session goes on and on"
        outcome.bodies.append(body)
        turn = 1 - turn
        last = steps[turn]
        step = respond(sides[turn], last.state if last else None, body, clocks[turn])
        steps[turn] = step
        outcome.sent[turn].extend(step.send)
        outcome.done[turn] = step.done
        outcome.more = outcome.more or step.more
        body = step.reply
    return outcome
