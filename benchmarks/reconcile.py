"""What reconciliation costs on the wire and in time: `python benchmarks/reconcile.py [--records 100000]`.

Bytes are those of the Reconcile messages as framed on a gossip stream, both directions, length prefixes included; the records
that are then sent are not counted. A round trip is two messages; where the last message asks for records, they come in answer.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.frames import encode_message
from agentmesh.mesh.logic.messages import Reconcile
from agentmesh.mesh.logic.reconcile import Step, begin, respond
from agentmesh.mesh.logic.snapshot import Snapshot

NOW_MS = 1_800_000_000_000
WINDOW_MS = 48 * HOUR_MS
SESSION = 0x5A5A5A5A  # as large as session numbers get


@dataclass(frozen=True, slots=True)
class Post:
    """A record as reconciliation sees it."""

    id: bytes
    timestamp_ms: int
    order_class: int = 1

    @property
    def expires_ms(self) -> int:
        return self.timestamp_ms + WINDOW_MS


def board(count: int, seed: int) -> list[Post]:
    """So many posts, spread at random over the window, oldest first."""
    rng = random.Random(seed)
    span_ms = WINDOW_MS - HOUR_MS
    posts = [Post(rng.randbytes(16), NOW_MS - span_ms + rng.randrange(span_ms)) for _ in range(count)]
    return sorted(posts, key=lambda post: (post.timestamp_ms, post.id))


@dataclass
class Cost:
    """Of one whole session."""

    bytes: int = 0
    messages: int = 0
    step_ms: list[float] = field(default_factory=list[float])
    sent: int = 0


def run(initiator: Sequence[Post], responder: Sequence[Post], salt: bytes) -> Cost:
    """One session to its end."""
    cost = Cost()
    boards = (Snapshot(initiator), Snapshot(responder))
    steps: list[Step | None] = [timed(cost, lambda: begin(boards[0], salt, NOW_MS)), None]
    turn = 0
    body = steps[0].reply if steps[0] else None
    while body is not None:
        cost.messages += 1
        cost.bytes += len(encode_message(Reconcile(SESSION, body)))
        turn = 1 - turn
        last = steps[turn]
        step = timed(cost, answer(boards[turn], last, body))
        steps[turn] = step
        cost.sent += len(step.send)
        body = step.reply
    return cost


def answer(snapshot: Snapshot, last: Step | None, body: bytes) -> Callable[[], Step]:
    return lambda: respond(snapshot, last.state if last else None, body, NOW_MS)


def timed(cost: Cost, compute: Callable[[], Step]) -> Step:
    start = time.process_time()
    step = compute()
    cost.step_ms.append((time.process_time() - start) * 1_000)
    return step


def cases(count: int) -> list[tuple[str, list[Post], list[Post], int | None]]:
    """(name, initiator's posts, responder's posts, bytes to reach at 100,000 records)."""
    posts = board(count, seed=1)
    rng = random.Random(2)
    some = max(1, count // 100)
    holes = set(rng.sample(range(count), some))
    scattered = [post for number, post in enumerate(posts) if number not in holes]
    sides = {number: rng.random() < 0.5 for number in sorted(holes)}
    left = [post for number, post in enumerate(posts) if sides.get(number, True)]
    right = [post for number, post in enumerate(posts) if not sides.get(number, False)]
    own = [Post(rng.randbytes(16), NOW_MS - rng.randrange(WINDOW_MS // 100)) for _ in range(5)]
    returning = sorted([*posts[:-some], *own], key=lambda post: (post.timestamp_ms, post.id))
    return [
        ("identical", posts, posts, 350),
        ("one missing", posts, posts[: count // 2] + posts[count // 2 + 1 :], None),
        (f"returning, {some} newest missing, it asks", posts[:-some], posts, 20_000),
        (f"returning, {some} newest missing, it is asked", posts, posts[:-some], 20_000),
        (f"returning with 5 posts of its own, {some} missing", returning, posts, 20_000),
        (f"{some} scattered, missing on one side", posts, scattered, 260_000),
        (f"{some} scattered, half on each side", left, right, 260_000),
        ("joining with nothing", [], posts, None),
        (
            "healing, a tenth of the newest differs",
            posts[: -count // 20],
            posts[: -count // 10] + posts[-count // 20 :],
            None,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    counts: list[int] = parser.parse_args().records
    print("| records | difference | bytes | target | messages | round trips | records sent | CPU ms a step |")
    print("|---:|---|---:|---:|---:|---:|---:|---|")
    for count in counts:
        for name, initiator, responder, target in cases(count):
            cost = run(initiator, responder, salt=random.Random(3).randbytes(16))
            reach = f"{target:,}" if target and count == 100_000 else ""
            steps = " ".join(f"{ms:.0f}" for ms in cost.step_ms)
            trips = (cost.messages + 1) // 2
            print(
                f"| {count:,} | {name} | {cost.bytes:,} | {reach} | {cost.messages} | {trips} | {cost.sent:,} | {steps} |"
            )


if __name__ == "__main__":
    main()
