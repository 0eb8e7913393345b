"""What this node remembers of the fast path to each peer, and how many connections it keeps ready there. Pure.

A path is tried when it was never tried, when it works, when its time-out after a failure is over, and when the peer's
addresses or its connection to us have changed since it failed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from agentmesh.mesh.logic.bulk_limits import (
    BULK_BLOCKED_MS,
    BULK_GONE_MS,
    BULK_IDLE_MS,
    BULK_PEERS,
    BULK_RETRY_MAX_MS,
    BULK_RETRY_MS,
    POOL_DEMAND_MS,
    POOL_DIALS,
    POOL_MAX,
    POOL_MIN,
)


@dataclass(frozen=True, slots=True)
class BulkTarget:
    """Where a peer listens for bulk streams: TCP addresses, best first.

    `seen_ms` is when the peer was last admitted: a new connection is a reason to try a failed path again.
    """

    addresses: tuple[str, ...]
    seen_ms: int = 0


@dataclass(slots=True)
class _Path:
    target: BulkTarget
    works: bool = False  # it has worked, at this target
    failures: int = 0  # in a row
    failed_until_ms: int = 0
    closed_until_ms: int = 0  # its port refused us just now
    opened_ms: deque[int] = field(default_factory=lambda: deque(maxlen=POOL_MAX))
    last_opened_ms: int | None = None


class BulkPaths:
    """See the module. One for a node; times are of one clock that does not run backwards."""

    def __init__(self) -> None:
        self._paths: dict[bytes, _Path] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def may_try(self, node: bytes, target: BulkTarget, now_ms: int) -> bool:
        """Whether the fast path is worth trying for a stream that is opened now."""
        path = self._path(node, target)
        return path.failures == 0 or now_ms >= path.failed_until_ms

    def works(self, node: bytes) -> bool:
        """Whether its last trial went well."""
        path = self._paths.get(node)
        return path is not None and path.works and path.failures == 0

    def succeeded(self, node: bytes, target: BulkTarget) -> None:
        """A connection was made and admitted."""
        path = self._path(node, target)
        path.works, path.failures, path.closed_until_ms = True, 0, 0

    def failed(self, node: bytes, target: BulkTarget, now_ms: int) -> None:
        """A trial ended without a connection. Of several at once only the first counts."""
        path = self._path(node, target)
        if path.target != target or (path.failures and now_ms < path.failed_until_ms):
            return
        pause_ms = (BULK_RETRY_MS if path.works else BULK_BLOCKED_MS) << min(path.failures, 16)
        path.failures += 1
        path.failed_until_ms = now_ms + min(pause_ms, BULK_RETRY_MAX_MS)

    def port_closed(self, node: bytes, target: BulkTarget, now_ms: int) -> None:
        """A trial ended at once: nothing listens there."""
        path = self._path(node, target)
        if path.target == target:
            path.closed_until_ms = now_ms + BULK_GONE_MS

    def is_closed(self, node: bytes, now_ms: int) -> bool:
        """Whether the peer's port refused just now: its node has ended, or something between us shuts this way.

        Only until failure detection must have noticed an end by itself.
        """
        path = self._paths.get(node)
        return path is not None and now_ms < path.closed_until_ms

    # ------------------------------------------------------------------ the pool

    def opened(self, node: bytes, now_ms: int) -> None:
        """A stream to `node` is wanted."""
        path = self._paths.get(node)
        if path is not None:
            path.opened_ms.append(now_ms)
            path.last_opened_ms = now_ms

    def keep_ready(self, node: bytes, now_ms: int) -> int:
        """How many idle connections `node` should have: none when it is not in use, 2 to 8 as many as it needed lately."""
        path = self._paths.get(node)
        if path is None or path.last_opened_ms is None or now_ms - path.last_opened_ms >= BULK_IDLE_MS:
            return 0
        lately = sum(1 for opened_ms in path.opened_ms if now_ms - opened_ms < POOL_DEMAND_MS)
        return max(POOL_MIN, min(lately, POOL_MAX))

    def dials_due(self, node: bytes, now_ms: int, *, idle: int, dialling: int, waiting: int) -> int:
        """How many more dials to begin: for those who wait and for the pool, but no more at once than the peer admits.

        A path that is not known to work is tried by one dial.
        """
        path = self._paths.get(node)
        if path is None or (path.failures and now_ms < path.failed_until_ms):
            return 0
        wanted = waiting + self.keep_ready(node, now_ms) - idle - dialling
        at_once = POOL_DIALS if self.works(node) else 1
        return max(0, min(wanted, at_once - dialling))

    def forget(self, node: bytes) -> None:
        """The peer is no member any more."""
        self._paths.pop(node, None)

    def _path(self, node: bytes, target: BulkTarget) -> _Path:
        """The path, made the most lately used; a failed one begins anew when its target has changed."""
        path = self._paths.pop(node, None)
        if path is None:
            path = _Path(target)
        elif path.target != target and target.seen_ms >= path.target.seen_ms:
            moved = path.target.addresses != target.addresses
            path.target, path.failures, path.closed_until_ms = target, 0, 0
            path.works = path.works and not moved
        self._paths[node] = path
        while len(self._paths) > BULK_PEERS:
            del self._paths[next(iter(self._paths))]
        return path
