"""Admitted connections of the fast path that carry nothing now, bounded for each peer and in all: beyond that the longest idle is
closed. Both sides keep theirs here. State: the idle connections in the order in which they became so. Owner: the event loop.
"""

from __future__ import annotations

from agentmesh.mesh.tls_link import TlsLink

NOT_NEEDED = "not needed"


class IdleLinks:
    """See the module. A connection that closes meanwhile stays counted until it is taken, removed or trimmed."""

    def __init__(self, *, of_one: int, in_all: int) -> None:
        self._of_one = of_one
        self._in_all = in_all
        self._all: dict[TlsLink, tuple[bytes, int]] = {}
        self._of: dict[bytes, dict[TlsLink, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def count(self, node: bytes) -> int:
        """Those of one peer."""
        return len(self._of.get(node, ()))

    def add(self, node: bytes, link: TlsLink, now_ms: int) -> None:
        """A connection has become idle."""
        self._all[link] = (node, now_ms)
        mine = self._of.setdefault(node, {})
        mine[link] = None
        if len(mine) > self._of_one:
            self._drop(next(iter(mine)))
        elif len(self._all) > self._in_all:
            self._drop(next(iter(self._all)))

    def take(self, node: bytes) -> TlsLink | None:
        """The one that became idle last: the least likely to have gone silent; those not needed stay idle until they are old."""
        mine = self._of.get(node)
        if not mine:
            return None
        link = next(reversed(mine))
        self.remove(link)
        return link

    def remove(self, link: TlsLink) -> None:
        """It is used, or gone. One that is not here is passed over."""
        entry = self._all.pop(link, None)
        if entry is not None:
            mine = self._of[entry[0]]
            del mine[link]
            if not mine:
                del self._of[entry[0]]

    def trim(self, node: bytes, keep: int, idle_since_ms: int) -> None:
        """Forget a peer's closed ones, and close those beyond `keep` that are idle since `idle_since_ms` or longer.

        With `keep` 0 all are closed.
        """
        for link in list(self._of.get(node, ())):
            if link.is_closed:
                self.remove(link)
        for link in list(self._of.get(node, ()))[: max(0, self.count(node) - keep)]:
            if keep == 0 or self._all[link][1] <= idle_since_ms:
                self._drop(link)

    def _drop(self, link: TlsLink) -> None:
        self.remove(link)
        link.close(NOT_NEEDED)
