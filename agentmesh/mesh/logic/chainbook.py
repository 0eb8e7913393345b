"""The chains that Trust holds, found by subject and by anything in their lineage. Judges nothing.

State: member records' chains, the best of each subject, and a bounded memory of chains that were dropped because
something in their lineage was revoked ("lapsed": for vouching and for telling a stranger from somebody who is out).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.mesh.logic.certificate import SERIAL_BYTES, Certificate, Chain, Role, merge, parse_nodes, subchain
from agentmesh.mesh.logic.limits import MAX_INNER_CERTIFICATES, MAX_SUBTREE_CERTIFICATES
from agentmesh.mesh.logic.subtree_room import SubtreeRoom, path_of

LAPSED_CHAINS: Final = (
    10_000  # as many as a mesh has members; older ones are forgotten and their subjects become strangers
)


@dataclass(frozen=True, slots=True)
class Held:
    """One member record's chain. `expires_ms` is the record's, never later than the leaf's."""

    record_id: bytes
    author: bytes
    subject: bytes
    timestamp_ms: int
    expires_ms: int
    certificate: Certificate
    chain: Chain

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.author, self.subject

    @property
    def rank(self) -> tuple[bool, int, bytes]:
        """The largest is the subject's best: its own before vouchers, then the newest certificate."""
        return self.author == self.subject, self.certificate.issued_ms, self.record_id


class ChainBook:
    def __init__(self, mesh: bytes) -> None:
        self._mesh = mesh
        self._held: dict[tuple[bytes, bytes], Held] = {}
        self._by_subject: dict[bytes, dict[bytes, Held]] = {}
        self._by_element: dict[bytes, dict[tuple[bytes, bytes], None]] = {}
        self._best: dict[bytes, Held] = {}
        self._lapsed: dict[bytes, Held] = {}
        self._founders: dict[bytes, None] = {}
        self._scopes: dict[bytes, tuple[bytes, ...]] = {}
        self._next_expiry_ms: int | None = None
        self._before: dict[bytes, Held | None] = {}
        self._dropped: dict[bytes, None] = {}
        self._crowded_out: dict[bytes, None] = {}
        self._room = SubtreeRoom(MAX_SUBTREE_CERTIFICATES, MAX_INNER_CERTIFICATES)

    # -------------------------------------------------------------- changes

    def is_newer(self, held: Held) -> bool:
        """Whether it would replace what its register holds."""
        known = self._held.get(held.key)
        return known is None or (held.timestamp_ms, held.record_id) > (known.timestamp_ms, known.record_id)

    def hold(self, held: Held) -> tuple[bytes, ...]:
        """Take it in, in the place of an older one of its register. Returns the subjects whose chains changed.

        None of them, and nothing changed, if there is no room for it in its subtree.
        """
        loser = self._room.take(held.key, path_of(held.chain), held.certificate.issued_ms, held.record_id)
        if loser == held.key:
            return ()
        if loser is not None:
            crowded_out = self._held[loser]
            self._remove(crowded_out)
            self._dropped[crowded_out.record_id] = None
            self._crowded_out[crowded_out.subject] = None
            self._choose(crowded_out.subject)
        if (known := self._held.get(held.key)) is not None:
            self._remove(known, keep_place=True)
        self._held[held.key] = held
        self._by_subject.setdefault(held.subject, {})[held.author] = held
        for element in _elements(held):
            self._by_element.setdefault(element, {})[held.key] = None
        if held.certificate.is_founder:
            self._founders[held.subject] = None
        elif len(held.certificate.via) > 1:
            self._founders[held.certificate.via[1]] = None  # the root key signs nobody else
        if self._next_expiry_ms is None or held.expires_ms < self._next_expiry_ms:
            self._next_expiry_ms = held.expires_ms
        self._lapsed.pop(held.subject, None)
        self._choose(held.subject)
        return (held.subject,) if loser is None else (held.subject, loser[1])

    def drop_touched(self, elements: Iterable[bytes]) -> tuple[bytes, ...]:
        """Drop every chain with one of these in its lineage or as its subject; returns their subjects."""
        touched = [key for element in elements for key in self._by_element.get(element, ())]
        subjects: dict[bytes, None] = {}
        for key in dict.fromkeys(touched):
            held = self._held[key]
            self._remove(held)
            self._remember(held)
            self._dropped[held.record_id] = None
            subjects[held.subject] = None
        for subject in subjects:
            self._choose(subject)
        return tuple(subjects)

    def expire(self, now_ms: int) -> tuple[bytes, ...]:
        """Drop what has ended; returns the subjects."""
        if self._next_expiry_ms is None or now_ms < self._next_expiry_ms:
            return ()
        ended = [held for held in self._held.values() if held.expires_ms <= now_ms]
        for held in ended:
            self._remove(held)
        subjects = tuple(dict.fromkeys(held.subject for held in ended))
        for subject in subjects:
            self._choose(subject)
        self._next_expiry_ms = min((held.expires_ms for held in self._held.values()), default=None)
        for subject in [s for s, held in self._lapsed.items() if held.expires_ms <= now_ms]:
            del self._lapsed[subject]
        return subjects

    def take_changes(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]:
        """Since the last call: keys that gained a chain, keys that lost their last, dropped record ids, keys that moved."""
        gained, lost, moved = list[bytes](), list[bytes](), list[bytes]()
        for subject, before in self._before.items():
            now = self._best.get(subject)
            if now is None and before is not None:
                lost.append(subject)
            elif now is not None and before is None:
                gained.append(subject)
            elif now and before and now.certificate.line != before.certificate.line:
                moved.append(subject)
        dropped = tuple(sorted(self._dropped))
        everyone_below = self._with_line_below(moved + gained + lost)
        self._before, self._dropped = {}, {}
        return tuple(sorted(gained)), tuple(sorted(lost)), dropped, everyone_below

    def take_crowded_out(self) -> tuple[bytes, ...]:
        """Keys that lost a chain for want of room since the last call and have no other."""
        taken, self._crowded_out = tuple(self._crowded_out), {}
        return tuple(subject for subject in taken if subject not in self._best)

    def _with_line_below(self, subjects: Sequence[bytes]) -> tuple[bytes, ...]:
        """These members and those whose line of inviters may pass through one of them, now or before."""
        seen = dict.fromkeys(subjects)
        stack = list(subjects)
        while stack:
            for _, below in self._by_element.get(stack.pop(), ()):
                if below not in seen:
                    seen[below] = None
                    stack.append(below)
        return tuple(sorted(subject for subject in seen if subject in self._best))

    def _remove(self, held: Held, *, keep_place: bool = False) -> None:
        if not keep_place:
            self._room.leave(held.key)
        del self._held[held.key]
        theirs = self._by_subject[held.subject]
        del theirs[held.author]
        if not theirs:
            del self._by_subject[held.subject]
        for element in _elements(held):
            keys = self._by_element[element]
            del keys[held.key]
            if not keys:
                del self._by_element[element]

    def _remember(self, held: Held) -> None:
        known = self._lapsed.get(held.subject)
        if known is None or held.rank > known.rank:
            self._lapsed[held.subject] = held
        while len(self._lapsed) > LAPSED_CHAINS:
            del self._lapsed[next(iter(self._lapsed))]

    def _choose(self, subject: bytes) -> None:
        theirs = self._by_subject.get(subject)
        best = max(theirs.values(), key=lambda held: held.rank) if theirs else None
        current = self._best.get(subject)
        if best is current:
            return
        self._before.setdefault(subject, current)
        self._scopes.clear()
        if best is None:
            del self._best[subject]
        else:
            self._best[subject] = best

    # -------------------------------------------------------------- look-ups

    def best(self, subject: bytes) -> Held | None:
        return self._best.get(subject)

    def best_at(self, subject: bytes, now_ms: int) -> Held | None:
        """The best that has not ended, while `expire` has not run yet."""
        return next((held for held in self._by_subject.get(subject, {}).values() if now_ms < held.expires_ms), None)

    def lapsed(self, subject: bytes) -> Held | None:
        return self._lapsed.get(subject)

    def lapsed_keys(self) -> tuple[bytes, ...]:
        return tuple(self._lapsed)

    def known_chain(self, subject: bytes) -> Chain | None:
        held = self._best.get(subject) or self._lapsed.get(subject)
        return held.chain if held else None

    def invite_serials(self) -> tuple[bytes, ...]:
        return tuple(sorted(element for element in self._by_element if len(element) == SERIAL_BYTES))

    def members(self) -> tuple[bytes, ...]:
        return tuple(sorted(self._best))

    def lineages_of(self, subject: bytes) -> Iterator[tuple[bytes, ...]]:
        """Of all known chains, lapsed ones too: that a chain was dropped must not change what is revoked."""
        for held in self._by_subject.get(subject, {}).values():
            yield held.certificate.lineage
        if (lapsed := self._lapsed.get(subject)) is not None:
            yield lapsed.certificate.lineage

    def lineages_within(self, subject: bytes, chains: Iterable[Chain]) -> tuple[tuple[bytes, ...], ...]:
        """The lineages of a key's member certificates within these chains."""
        certificates = (node.certificate for chain in chains for node in parse_nodes(chain).values())
        found = (c.lineage for c in certificates if c.subject == subject and c.role is Role.MEMBER)
        return tuple(dict.fromkeys(found))

    def below(self, target: bytes) -> Iterator[Held]:
        """For each subject with `target` in all its chains, or in the one that lapsed: its best, in the order of keys."""
        subjects = {key[1] for key in self._by_element.get(target, ())}
        lapsed = {s for s, held in self._lapsed.items() if target in held.certificate.lineage and s not in self._best}
        for subject in sorted(subjects | lapsed):
            theirs = self._by_subject.get(subject)
            if theirs and any(target not in held.certificate.lineage for held in theirs.values()):
                continue
            yield self._best[subject] if theirs else self._lapsed[subject]

    def scopes(self, author: bytes) -> tuple[bytes, ...]:
        known = self._scopes.get(author)
        if known is None:
            known = self._scopes[author] = self._trace(author)
        return known

    def _trace(self, author: bytes) -> tuple[bytes, ...]:
        """Follow the line of inviters as it is now, not as it was when `author` was admitted: only so do subtrees nest."""
        path: dict[bytes, None] = {}
        current = author
        while (held := self._best.get(current)) and held.certificate.line:
            line = held.certificate.line
            if line[-1] in path or line[-1] == author:  # two who vouched for each other
                break
            path.update(dict.fromkeys(line))
            current = line[-1]
        return tuple(element for element in path if element not in self._founders and element != self._mesh)

    def invite_chain(self, serial: bytes) -> Chain | None:
        for author, subject in self._by_element.get(serial, ()):
            chain = self._held[author, subject].chain
            for node in parse_nodes(chain).values():
                if node.certificate.role is Role.INVITE and node.certificate.serial == serial:
                    return subchain(chain, node.digest)
        return None


def _elements(held: Held) -> tuple[bytes, ...]:
    return merge((held.subject,), held.certificate.lineage)
