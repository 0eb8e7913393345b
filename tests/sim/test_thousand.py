"""A thousand nodes on links that lose almost a third of all messages."""

from __future__ import annotations

import pytest

from tests.sim.broadcast_figures import measure


@pytest.mark.timeout(900)  # 40 s where nothing else runs
def test_every_post_reaches_a_thousand_nodes_at_thirty_percent_loss() -> None:
    figures = measure(1_000, loss=0.3, posts=8, seed=1, settle_ms=10_000)
    print(
        f"\n{figures.nodes} nodes, {figures.loss:.0%} loss: {figures.copies:.2f} payload copies a node, "
        f"last hop {figures.last_hop}, {figures.bytes_per_post:,.0f} bytes a node and post, "
        f"nearly everywhere after {figures.nearly_ms} ms, everywhere after {figures.everywhere_ms} ms; idle {figures.idle_bytes_per_s:.0f} B/s a node\n"
        f"flooding, fan-out 3: {figures.flood.copies_per_node:.1f} copies a node, {figures.flood.rounds} rounds, "
        f"reached {figures.flood.reached}"
    )
    assert figures.copies < 3.0
    assert figures.copies * 5 < figures.flood.copies_per_node
    assert figures.bytes_per_post < 5_000
    assert figures.idle_bytes_per_s < 1_000
