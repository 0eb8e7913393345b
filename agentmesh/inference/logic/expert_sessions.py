"""Which node's shard answers a session: the same one each time, and another only when that one is gone.

Rendezvous hashing (Thaler and Ravishankar, 1998): every node draws a number from the session and its own name, the largest wins. A node that
leaves moves its own sessions only, spread over the others; one that comes takes its share from each. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


def node_of_session(session: bytes, nodes: Iterable[str]) -> str | None:
    """The node among `nodes` that answers this session, the same for everybody who knows the same nodes; None when there is none.

    `session` is what holds a conversation together: logic/session_key.py.
    """
    return max(nodes, key=lambda node: (_draw(session, node), node), default=None)


def order_of_session(session: bytes, nodes: Iterable[str]) -> list[str]:
    """The nodes in the order in which this session is offered to them: without the first, the second is what `node_of_session` says."""
    return sorted(nodes, key=lambda node: (_draw(session, node), node), reverse=True)


def _draw(session: bytes, node: str) -> bytes:
    return hashlib.blake2b(session, key=_key(node), digest_size=16).digest()


@lru_cache(maxsize=1024)  # hosts of shards are few, and each decision asks for all of them
def _key(node: str) -> bytes:
    return hashlib.blake2b(node.encode("utf-8", "surrogatepass"), digest_size=16).digest()
