"""How many certificates and revocations one subtree of the mesh may have in force, so that no member fills every node's disk.

Posts are bounded by the day (quota.py); these lie for a year or ten, and whoever may invite can make them by the thousand,
offline. Each counts in every subtree that it hangs in by its own chain, innermost first. A subtree is named by its whole
path, so two are apart or one is inside the other; the smallest by (distance from a founder, time, id) stay. As with
posts, what is kept is then a function of the set, and who is nearer to the founder is never crowded out from below.
What founders and the root key make is not counted: they answer for everybody anyway.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from agentmesh.mesh.logic.certificate import Basis, Certificate, Chain, Node, Role, parse_nodes

Path = tuple[bytes, ...]
"""Invites and inviters from the innermost to below the founder."""
Order = tuple[int, int, bytes]
Key = tuple[bytes, bytes]


class SubtreeRoom:
    """Who has a place. `widest`: places below one invite of a founder; `inner`: below anybody further down."""

    def __init__(self, widest: int, inner: int) -> None:
        self._widest = widest
        self._inner = inner
        self._paths: dict[Key, tuple[Path, Order]] = {}
        self._scopes: dict[Path, list[tuple[Order, Key]]] = {}

    def take(self, key: Key, path: Path, time_ms: int, id_: bytes) -> Key | None:
        """Take a place, giving up the one that `key` had. Returns who loses its place: None, another, or `key` itself.

        In the last case everything is as before.
        """
        before = self._paths.get(key)
        self.leave(key)
        order = (len(path), time_ms, id_)
        loser = self._loser(key, path, order)
        if loser == key:
            if before is not None:
                self._insert(key, *before)
            return key
        if loser is not None:
            self.leave(loser)
        self._insert(key, path, order)
        return loser

    def leave(self, key: Key) -> None:
        """Give up the place of `key`, if it has one."""
        path, order = self._paths.pop(key, ((), (0, 0, b"")))
        for scope in _scopes(path):
            places = self._scopes[scope]
            del places[bisect_left(places, (order, key))]
            if not places:
                del self._scopes[scope]

    def _insert(self, key: Key, path: Path, order: Order) -> None:
        if path:
            self._paths[key] = (path, order)
        for scope in _scopes(path):
            insort(self._scopes.setdefault(scope, []), (order, key))

    def _loser(self, key: Key, path: Path, order: Order) -> Key | None:
        for scope in _scopes(path):
            places = self._scopes.get(scope)
            if places and len(places) >= (self._widest if len(scope) == 1 else self._inner):
                return max(places[-1], (order, key))[1]
        return None


def _scopes(path: Path) -> list[Path]:
    return [path[start:] for start in range(len(path))]


def path_of(chain: Chain) -> Path:
    """The subtrees that a member's chain hangs in by what it shows itself."""
    nodes = parse_nodes(chain)
    return _path(nodes, next(iter(nodes.values())).certificate)


def path_of_author(author: bytes, target_chain: Chain, author_chain: Chain = ()) -> Path:
    """The subtrees in which a revocation counts: its author's, and the author's own."""
    for chain in (author_chain, target_chain):
        nodes = parse_nodes(chain) if chain else {}
        for node in nodes.values():
            c = node.certificate
            if c.subject == author and c.role is Role.MEMBER:
                return () if c.is_founder else (author, *_path(nodes, c))
    return (author, *path_of(target_chain))


def _path(nodes: Mapping[bytes, Node], c: Certificate) -> Path:
    path: list[bytes] = []
    while True:
        while c.basis is Basis.RENEWAL and c.basis_digest:
            c = nodes[c.basis_digest].certificate
        if not c.line:
            return tuple(path)
        path += c.line[:-1]
        if c.basis is Basis.RENEWAL:  # by a founder, without what it renews
            return tuple(path) if c.line[-1] in c.via[:2] else (*path, c.line[-1])
        invite_or_voucher = nodes[c.basis_digest].certificate if c.basis is Basis.ADMISSION else c
        inviter = nodes[invite_or_voucher.issuer_digest].certificate
        if inviter.is_founder:
            return tuple(path)
        path.append(inviter.subject)
        c = inviter
