"""The set of records that this node keeps: one function of what was signed, not of the order in which it arrived.

Owns acceptance (kind, time, standing, last writer wins, quota, retraction), expiry, and what the node remembers of records
that it keeps no longer. Signatures were checked before, payloads stay in the store, and what a payload means is its kind's business.
Memory: about 300 bytes a record (benchmarks/record_index.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from agentmesh.mesh.logic.author_tally import AuthorTallies
from agentmesh.mesh.logic.entry import Entry, SortedEntries, StoredEntry, Tombstone
from agentmesh.mesh.logic.expiry import ExpiryQueue
from agentmesh.mesh.logic.kinds import CONTENT, TOMBSTONE, KindRule, Register, Rules, quota_memory_ms
from agentmesh.mesh.logic.limits import MAX_CLOCK_SKEW_MS
from agentmesh.mesh.logic.quota import QuotaBook, Quotas, Scopes
from agentmesh.mesh.logic.record import ID_BYTES, Record
from agentmesh.mesh.logic.refused import RefusedIds
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.logic.standing import Standing
from agentmesh.mesh.logic.verdict import Accepted, Known, NotYet, Reason, Refused, Verdict

StandingOf = Callable[[bytes, int], Standing]
"""standing(author, now_ms), from Trust."""

RegisterKey = tuple[str, bytes, bytes]


class RecordIndex:
    """What is kept. Every method that drops records returns their ids; the caller deletes them from the store."""

    def __init__(self, rules: Rules, standing: StandingOf, scopes: Scopes, policy: Callable[[], Quotas]) -> None:
        self._rules = rules
        self._standing = standing
        self._quota = QuotaBook(scopes, policy)
        self._quota_memory_ms = quota_memory_ms(rules)
        self._entries: dict[bytes, Entry] = {}
        self._registers: dict[RegisterKey, Entry] = {}
        self._unslotted: dict[bytes, Entry] = {}  # those outside the quotas: few beside the posts
        self._lasting = {
            rule.order_class: SortedEntries() for rule in sorted(rules.values(), key=_class) if rule.lasting
        }
        self._expiry = ExpiryQueue()
        self._refused = RefusedIds()
        self._tallies = AuthorTallies()
        self._discarded: dict[bytes, int] = {}  # evicted ids, until they would have expired
        self._owed: list[bytes] = []  # dropped while a record was refused; the next expire() returns them
        self._latest_ms: dict[bytes, int] = {}  # of the authors that next_timestamp was asked for

    # ------------------------------------------------------------------ looking

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """Everything kept, in the order in which it came."""
        return iter(self._entries.values())

    def entry(self, id_: bytes) -> Entry | None:
        return self._entries.get(id_)

    def register(self, kind: str, author: bytes, subkey: bytes) -> Entry | None:
        """What is kept in one last-writer-wins register."""
        return self._registers.get((kind, author, subkey))

    def passing(self) -> tuple[bytes, ...]:
        """Ids of the kinds that are not reconciled: what a joining peer is given whole."""
        return tuple(entry.id for entry in self._unslotted.values() if not entry.rule.lasting)

    def wants(self, id_: bytes, now_ms: int) -> bool:
        """Whether a record announced under this id should be fetched."""
        return id_ not in self._entries and id_ not in self._discarded and not self._refused.holds(id_, now_ms)

    def snapshot(self, now_ms: int) -> Snapshot:
        """The lasting records and the ids not wanted, for reconciliation in another thread."""
        items = [entry for entries in self._lasting.values() for entry in entries.copy()]
        return Snapshot(items, [*self._refused.current(now_ms), *self._discarded])

    def next_timestamp(self, author: bytes, now_ms: int) -> int:
        """A timestamp later than that of every record of the author that is or was here; each call gives a later one.

        What was dated by a clock that ran ahead and was set right does not count: all else would be "not yet" for as long.
        """
        latest_ms = self._latest_ms.get(author)
        if latest_ms is None:
            here = (entry.timestamp_ms for entry in self._entries.values() if entry.author == author)
            gone = (entry.timestamp_ms for entry in self._quota if entry.author == author)
            latest_ms = max((*here, *gone), default=0)
        if latest_ms >= now_ms + MAX_CLOCK_SKEW_MS:
            latest_ms = 0
        latest_ms = self._latest_ms[author] = max(now_ms, latest_ms + 1)
        return latest_ms

    def times_for(self, kind: str, author: bytes, subkey: bytes, lifetime_ms: int, now_ms: int) -> tuple[int, int]:
        """(timestamp, expires) of a new record of our own. A retraction has the timestamp and the longest life of its target.

        Raises:
            LookupError: a retraction's target is not here or not the author's.
        """
        rule = self._rules[kind]
        if rule.retracts is None:
            timestamp_ms = self.next_timestamp(author, now_ms)
            return timestamp_ms, timestamp_ms + min(lifetime_ms, rule.max_lifetime_ms)
        target = self._entries.get(subkey)
        if target is None or target.author != author or target.kind != rule.retracts:
            raise LookupError("there is no such record of this author here")
        return target.timestamp_ms, target.timestamp_ms + rule.max_lifetime_ms

    def quota_used(self, author: bytes, now_ms: int) -> tuple[int, int, int]:
        """Slots in use: the author's in this minute and on this day, and those of the fullest of its subtrees on this day."""
        return self._quota.used(author, now_ms)

    # ------------------------------------------------------------------ accepting

    def offer(self, record: Record, now_ms: int) -> Verdict:
        """Keep a record whose signature is good, or say why not."""
        if record.id in self._entries:
            return Known()
        if record.id in self._discarded:
            return Refused(Reason.DISCARDED)
        verdict = self._unfit(record, now_ms) or self._admit(self._entry_of(record), now_ms)
        if isinstance(verdict, Refused):
            self._refused.add(record.id, now_ms)
        return verdict

    def _unfit(self, record: Record, now_ms: int) -> NotYet | Refused | None:
        """What is wrong with the record itself, its time or its author."""
        rule = self._rules.get(record.kind)
        if rule is None:
            return Refused(Reason.UNKNOWN_KIND)
        lifetime_ms = record.expires_ms - record.timestamp_ms
        if len(record.payload) > rule.max_payload_bytes:
            return Refused(Reason.MALFORMED, blame=True, detail="payload over its kind's limit")
        if lifetime_ms > rule.max_lifetime_ms:
            return Refused(Reason.MALFORMED, blame=True, detail="lifetime over its kind's limit")
        if rule.register == Register.ID and record.subkey:
            return Refused(Reason.MALFORMED, blame=True, detail="a subkey where its kind has none")
        if rule.retracts is not None and (len(record.subkey) != ID_BYTES or lifetime_ms != rule.max_lifetime_ms):
            return Refused(Reason.MALFORMED, blame=True, detail="not in the form of a retraction")
        problem = rule.validate(record)
        if problem is not None:
            return Refused(Reason.MALFORMED, blame=True, detail=problem)
        if record.expires_ms <= now_ms:
            return Refused(Reason.EXPIRED)
        if record.timestamp_ms > now_ms + MAX_CLOCK_SKEW_MS:
            return NotYet(Reason.TOO_EARLY)
        if rule.self_certifying:
            return None  # Trust has judged it; another word here would part the two
        standing = self._standing(record.author, now_ms)
        if standing == Standing.OUT:
            return Refused(Reason.AUTHOR_OUT)
        return NotYet(Reason.AUTHOR_UNKNOWN) if standing == Standing.UNKNOWN else None

    def _entry_of(self, record: Record) -> Entry:
        rule = self._rules[record.kind]
        return Entry(
            record.id,
            rule,
            self._tallies.shared_key(record.author),
            record.subkey,
            record.timestamp_ms,
            _shared_lifetime(rule, record.expires_ms - record.timestamp_ms),
            self._tallies.shared_size(record.size_bytes),
        )

    def _admit(self, entry: Entry, now_ms: int) -> Accepted | Refused:
        if entry.rule.quota:
            return self._admit_by_quota(entry, now_ms)
        if entry.rule.register == Register.ID:
            self._keep(entry)
            return Accepted()
        key = (entry.kind, entry.author, entry.subkey)
        current = self._registers.get(key)
        if current is not None and (current.timestamp_ms, current.id) > (entry.timestamp_ms, entry.id):
            return Refused(Reason.REPLACED)
        if current is not None:
            self._forget(current)
        self._registers[key] = entry
        self._keep(entry)
        return Accepted((current.id,) if current else ())

    def _admit_by_quota(self, entry: Entry, now_ms: int) -> Accepted | Refused:
        self._follow_author(entry.author, now_ms)
        holder = self._quota.holder(entry)
        if holder is not None:
            refused = _must_stay(holder, entry)
            if refused is not None:
                return refused
            self._quota.replace(holder, entry)
            # The holder first: the two stand at the same place among the sorted.
            dropped = self._settle_debts() + self._forget_if_kept(holder)
            self._keep(entry)
            return Accepted(dropped)
        loser = self._quota.place(entry)
        if loser is entry:
            return Refused(Reason.OVER_QUOTA)
        self._keep(entry)
        return Accepted(self._settle_debts() + self._displaced(loser, now_ms))

    def _follow_author(self, author: bytes, now_ms: int) -> None:
        """Place an author's slots anew when Trust now knows it by another chain, thus in other subtrees."""
        if self._quota.moved(author):
            self._owed += self._place_again(self._quota.take_author(author), now_ms)

    def _place_again(self, entries: Iterable[Entry], now_ms: int) -> tuple[bytes, ...]:
        dropped: list[bytes] = []
        for entry in entries:
            dropped += self._displaced(self._quota.place(entry), now_ms)
        return tuple(dropped)

    def _displaced(self, loser: Entry | None, now_ms: int) -> tuple[bytes, ...]:
        dropped = self._forget_if_kept(loser) if loser else ()
        for id_ in dropped:
            self._refused.add(id_, now_ms)
        return dropped

    def _settle_debts(self) -> tuple[bytes, ...]:
        owed, self._owed = tuple(self._owed), []
        return owed

    # ------------------------------------------------------------------ keeping

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        if not entry.rule.quota:
            self._unslotted[entry.id] = entry
        self._tallies.add(entry.author, entry.size_bytes)
        self._expiry.add(entry)
        if entry.rule.lasting:
            self._lasting[entry.order_class].add(entry)
        self._refused.discard(entry.id)
        latest_ms = self._latest_ms.get(entry.author)
        if latest_ms is not None and latest_ms < entry.timestamp_ms:
            self._latest_ms[entry.author] = entry.timestamp_ms

    def _forget(self, entry: Entry, *, expired: bool = False) -> None:
        """Keep it no longer. A quota slot that it holds is not touched."""
        del self._entries[entry.id]
        self._tallies.subtract(entry.author, entry.size_bytes)
        if not expired:
            self._expiry.remove(entry)
        if entry.rule.lasting:
            self._lasting[entry.order_class].remove(entry)
        if not entry.rule.quota:
            del self._unslotted[entry.id]
            key = (entry.kind, entry.author, entry.subkey)
            if self._registers.get(key) is entry:
                del self._registers[key]

    def _forget_if_kept(self, entry: Entry) -> tuple[bytes, ...]:
        if self._entries.get(entry.id) is not entry:
            return ()
        self._forget(entry)
        return (entry.id,)

    # ------------------------------------------------------------------ dropping

    def refuse(self, id_: bytes, now_ms: int) -> None:
        """Do not fetch this id for a while: it could not be parsed, its signature was bad, Trust refused it."""
        self._refused.add(id_, now_ms)

    def forget_refused(self) -> None:
        """Let refused records be fetched again: the policy or the membership changed."""
        self._refused.clear()

    def expire(self, now_ms: int) -> tuple[bytes, ...]:
        """Drop what has expired by its own signed time. Its quota slots count on until their day is over."""
        dropped = [*self._settle_debts()]
        for entry in self._expiry.pop_expired(now_ms):
            self._forget(entry, expired=True)
            dropped.append(entry.id)
        self._quota.end_days(now_ms - self._quota_memory_ms)
        self._discarded = {id_: until_ms for id_, until_ms in self._discarded.items() if until_ms > now_ms}
        return tuple(dropped)

    def drop_author(self, author: bytes) -> tuple[bytes, ...]:
        """Drop what an author wrote who is out, and free its quota slots. What Trust judges by itself goes by `drop`."""
        written = [e for e in self._unslotted.values() if e.author == author and not e.rule.self_certifying]
        written += [e for e in self._quota.take_author(author) if self._entries.get(e.id) is e]
        for entry in written:
            self._forget(entry)
        return tuple(entry.id for entry in written)

    def drop(self, ids: Iterable[bytes], now_ms: int) -> tuple[bytes, ...]:
        """Drop records that Trust no longer holds, and do not fetch them again for a while."""
        dropped = [entry for id_ in dict.fromkeys(ids) if (entry := self._entries.get(id_)) is not None]
        for entry in dropped:
            self._forget(entry)
            self._refused.add(entry.id, now_ms)
        return tuple(entry.id for entry in dropped)

    def unkeep(self, ids: Sequence[bytes], now_ms: int) -> None:
        """The disk did not take these: as if they had never come, so that they can come again later."""
        found = [entry for id_ in ids if (entry := self._entries.get(id_)) is not None]
        self.drop(ids, now_ms)
        for entry in (e for e in found if e.rule.quota and self._quota.holder(e) is e):
            self._quota.remove(entry)

    def follow(self, authors: Iterable[bytes], now_ms: int) -> tuple[bytes, ...]:
        """Place the slots of authors anew whose subtrees may have changed."""
        for author in authors:
            self._follow_author(author, now_ms)
        return self._settle_debts()

    def requota(self, now_ms: int) -> tuple[bytes, ...]:
        """Apply changed quotas or subtrees to everything kept. What now fits again comes back by reconciliation."""
        self._refused.clear()
        return self._settle_debts() + self._place_again(self._quota.take_all(), now_ms)

    def size_bytes(self) -> int:
        """Bytes of all kept records in the store."""
        return self._tallies.total_bytes()

    def evict_largest_author(self, bytes_needed: int, spare: bytes) -> tuple[bytes, ...]:
        """Discard content of the largest authors but `spare`, oldest first, until so many bytes are free.

        For a full store only. Local: other nodes keep what is discarded here; it is not fetched again.
        """
        dropped: list[bytes] = []
        for author in self._tallies.largest_first():
            if author == spare:
                continue
            content = [e for e in self._entries.values() if e.author == author and e.order_class >= CONTENT]
            for entry in sorted(content, key=lambda e: e.slot):
                if bytes_needed <= 0:
                    return tuple(dropped)
                self._forget(entry)
                self._discarded[entry.id] = entry.expires_ms
                bytes_needed -= entry.size_bytes
                dropped.append(entry.id)
        return tuple(dropped)

    # ------------------------------------------------------------------ from and to the store

    def restore(
        self, entries: Iterable[StoredEntry], tombstones: Iterable[Tombstone], now_ms: int
    ) -> tuple[bytes, ...]:
        """Take in what the store holds, once Trust knows its certificates. Returns the ids that are not kept any more."""
        dropped: list[bytes] = []
        for tombstone in tombstones:
            entry = self._tombstone_entry(tombstone)
            if self._quota.holder(entry) is None and self._standing(entry.author, now_ms) != Standing.OUT:
                self._quota.place(entry)
        for stored in sorted(entries, key=lambda stored: (stored.timestamp_ms, stored.id)):
            dropped += self._restore_one(stored, now_ms)
        self._quota.end_days(now_ms - self._quota_memory_ms)
        return tuple(dropped)

    def _restore_one(self, stored: StoredEntry, now_ms: int) -> tuple[bytes, ...]:
        """The ids that are not kept: this one or those that it displaced."""
        rule = self._rules.get(stored.kind)
        if rule is None or stored.expires_ms <= now_ms:
            return (stored.id,)
        if not rule.self_certifying and self._standing(stored.author, now_ms) == Standing.OUT:
            return (stored.id,)
        entry = Entry(
            stored.id,
            rule,
            self._tallies.shared_key(stored.author),
            stored.subkey,
            stored.timestamp_ms,
            _shared_lifetime(rule, stored.expires_ms - stored.timestamp_ms),
            self._tallies.shared_size(stored.size_bytes),
        )
        verdict = self._admit(entry, now_ms)
        return verdict.dropped if isinstance(verdict, Accepted) else (stored.id,)

    def _tombstone_entry(self, tombstone: Tombstone) -> Entry:
        author = self._tallies.shared_key(tombstone.author)
        return Entry(tombstone.slot_id, TOMBSTONE, author, b"", tombstone.timestamp_ms, 0, 0)

    def tombstones(self) -> list[Tombstone]:
        """The quota slots whose records are gone: what must be stored beside the records."""
        return [
            Tombstone(entry.author, entry.timestamp_ms, entry.slot_id)
            for entry in self._quota
            if entry.id not in self._entries
        ]


def _class(rule: KindRule) -> int:
    return rule.order_class


def _shared_lifetime(rule: KindRule, lifetime_ms: int) -> int:
    """The rule's own number when it is the same, so that most entries need none of their own."""
    return rule.max_lifetime_ms if lifetime_ms == rule.max_lifetime_ms else lifetime_ms


def _must_stay(holder: Entry, entry: Entry) -> Refused | None:
    """Why `entry` may not take the slot of `holder`. A retraction takes its target's; of two retractions the smaller id stays."""
    if entry.rule.retracts is None:
        return Refused(Reason.RETRACTED if holder.rule.retracts else Reason.DISCARDED)
    if holder.rule.retracts is not None and holder.id <= entry.id:
        return Refused(Reason.DISCARDED if holder.id == entry.id else Reason.RETRACTED)
    return None
