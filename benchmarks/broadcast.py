"""What spreading a post costs: `python benchmarks/broadcast.py [--nodes 1000]`.

The real machines in virtual time, beside flooding with fan-out 3 in the same run. Links lose, QUIC's do not: the loss is that of
whole messages. Bytes are those of the messages as framed; "idle" is all that the mesh sends while nobody posts, with
connections probed every 5 s instead of every second.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.sim.broadcast_figures import POST_BYTES, Figures, measure


def row(figures: Figures) -> str:
    flood = figures.flood
    return (
        f"| {figures.nodes:,} | {figures.loss:.0%} | {figures.copies:.2f} | {figures.mean_hops:.1f} / {figures.last_hop} "
        f"| {figures.bytes_per_post:,.0f} | {figures.nearly_ms / 1000:.1f} s | {figures.everywhere_ms / 1000:.1f} s "
        f"| {figures.idle_bytes_per_s:,.0f} | {flood.copies_per_node:.1f} | {flood.rounds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=1_000, help="of the largest mesh")
    parser.add_argument("--posts", type=int, default=20)
    arguments = parser.parse_args()
    print(f"Posts of {POST_BYTES} bytes, after the tree was built by a few others.\n")
    print(
        "| nodes | loss | payload copies a node | hops, mean / most | bytes a node and post | 99 % there after | everywhere after "
        "| idle B/s a node | flooding: copies a node | flooding: rounds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for nodes in sorted({min(100, arguments.nodes), arguments.nodes}):
        for loss in (0.0, 0.1, 0.3):
            print(row(measure(nodes, loss=loss, posts=arguments.posts, seed=1)), flush=True)


if __name__ == "__main__":
    main()
