"""What the record index costs: `python benchmarks/record_index.py [--records 100000] [--authors 10000]`.

The load of MESH.md's budget: 10,000 nodes that posted five times on each of two days, offered in random order.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
import tracemalloc
from dataclasses import dataclass

from agentmesh.core.units import HOUR_MS
from agentmesh.mesh.logic.kinds import KindRule, Register, mesh_rules
from agentmesh.mesh.logic.record import Record, SignedRecord
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.standing import Standing

NOW_MS = 1_800_014_400_000
LIFETIME_MS = 48 * HOUR_MS
POST = KindRule("post", 8_192, LIFETIME_MS, register=Register.ID, quota=True)
HEADER_BYTES = 200  # of a signed record around its payload


@dataclass(frozen=True)
class Policy:
    posts_per_minute: int = 120
    posts_per_day: int = 2_500


def new_index() -> RecordIndex:
    """Every author came by one of 64 invites of one of 16 nodes."""
    return RecordIndex(
        mesh_rules(POST),
        lambda author, now_ms: Standing.MEMBER,
        lambda author: (b"invite %d" % (author[0] % 64), b"node %d" % (author[0] % 16)),
        Policy,
    )


def new_records(count: int, authors: int, rng: random.Random) -> list[Record]:
    keys = [rng.randbytes(32) for _ in range(authors)]
    records: list[Record] = []
    for _ in range(count):
        at_ms = NOW_MS - rng.randrange(47 * HOUR_MS)
        signed = SignedRecord(bytes(HEADER_BYTES + rng.randrange(1_000)), b"")
        records.append(
            Record(rng.randbytes(16), "post", rng.choice(keys), b"", at_ms, at_ms + LIFETIME_MS, b"", signed)
        )
    return records


def bytes_an_entry(count: int, authors: int) -> float:
    """Everything that stays once the records themselves are gone, their ids and timestamps included."""
    rng = random.Random(1)
    tracemalloc.start()
    index = new_index()
    before = tracemalloc.get_traced_memory()[0]
    records = new_records(count, authors, rng)
    for record in records:
        index.offer(record, NOW_MS)
    del records, record
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return kept / len(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--authors", type=int, default=10_000)
    arguments = parser.parse_args()
    records = new_records(arguments.records, arguments.authors, random.Random(2))
    print("| what | CPU time or memory |")
    print("|---|---:|")
    for name, order in (("random order", records), ("oldest first", sorted(records, key=lambda one: one.timestamp_ms))):
        index = new_index()
        start = time.process_time()
        for record in order:
            index.offer(record, NOW_MS)
        print(f"| offer, {name} | {(time.process_time() - start) * 1e6 / len(order):.1f} µs |")
    start = time.process_time()
    taken = len(index.snapshot(NOW_MS).items)
    print(f"| snapshot of {taken:,} | {(time.process_time() - start) * 1e3:.1f} ms |")
    start = time.process_time()
    index.requota(NOW_MS)
    print(f"| requota | {(time.process_time() - start) * 1e3:.0f} ms |")
    start = time.process_time()
    gone = len(index.expire(NOW_MS + 24 * HOUR_MS))
    print(f"| expiry | {(time.process_time() - start) * 1e6 / gone:.1f} µs a record |")
    print(f"| memory | {bytes_an_entry(arguments.records, arguments.authors):.0f} B a record |")


if __name__ == "__main__":
    main()
