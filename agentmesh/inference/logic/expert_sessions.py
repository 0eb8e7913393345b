"""Which node's shard answers a session: the same one each time, and another only when that one is gone.

Rendezvous hashing (Thaler and Ravishankar, 1998): every node draws a number from the session and its own name, the largest wins. A node that
leaves moves its own sessions only, spread over the others; one that comes takes its share from each. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def node_of_session(session: bytes, nodes: Iterable[str]) -> str | None:
    """The node among `nodes` that answers this session, the same for everybody who knows the same nodes; None when there is none.

    `session` is what holds a conversation together: the request's `user`, else its session, else the conversation's beginning.
    """
    return max(nodes, key=lambda node: (_draw(session, node), node), default=None)


def _draw(session: bytes, node: str) -> bytes:
    key = hashlib.blake2b(node.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return hashlib.blake2b(session, key=key, digest_size=16).digest()
