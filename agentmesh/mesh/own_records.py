"""This node's own records: dated, signed, on disk, then spread. In that order.

State: the posts that are on their way to the disk, which already count in this node's quota. Owner: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentmesh.core.clock import Clock
from agentmesh.core.errors import InvalidInput, NotFound, QuotaExceeded
from agentmesh.core.tasks import TaskSet
from agentmesh.core.units import DAY_MS, MINUTE_MS
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.kinds import KindRule
from agentmesh.mesh.logic.limits import SUBTREE_QUOTA_FACTOR
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.record import RECORD_VERSION, Record, RecordBody, build_record
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.store import RecordStore


class OwnRecords:
    """Publishes for one node. `policy` is the mesh's current one."""

    def __init__(
        self,
        key: NodeKey,
        membership: MembershipFile,
        index: RecordIndex,
        store: RecordStore,
        rules: dict[str, KindRule],
        clock: Clock,
        *,
        policy: Callable[[], Policy],
        created: Callable[[Record], None],
    ) -> None:
        self._key = key
        self._membership = membership
        self._index = index
        self._store = store
        self._rules = rules
        self._clock = clock
        self._policy = policy
        self._created = created
        self._on_their_way: list[int] = []
        self._tasks = TaskSet("own records")

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> Record:
        """Sign, store durably and spread a record; it is on disk when this returns.

        Raises:
            QuotaExceeded: this node has used up its quota of the kind.
            NotFound: a retraction's target is not here or not this node's.
            StorageError: it could not be stored; nothing was spread.
        """
        now_ms = self._clock.now_ms()
        rule = self._rules[kind]
        counts = rule.quota and rule.retracts is None
        record = self._make(kind, subkey, payload, lifetime_ms, now_ms)
        # By its own date: after a restart that may lie a few seconds ahead, in the next minute.
        if counts and (retry_at_ms := self.quota_retry_at_ms(kind, record.timestamp_ms)) is not None:
            wait_s = max(1, (retry_at_ms - now_ms + 999) // 1000)
            raise QuotaExceeded(f"This node has used up its quota of posts; try again in {wait_s} s.")
        if (fault := rule.validate(record)) is not None:
            raise InvalidInput(f"This cannot be published: {fault}.")
        if counts:
            self._on_their_way.append(record.timestamp_ms)
        # Whoever asked may give up; a record that reached the disk must be spread all the same.
        await asyncio.shield(self._tasks.spawn(self._keep(record, counts), name=f"publish {kind}"))
        return record

    async def keep(self, record: Record) -> None:
        """Store and spread a record that was signed elsewhere, to the end, even if the caller gives up. Raises: StorageError."""
        await asyncio.shield(self._tasks.spawn(self._keep(record, counts=False), name=f"publish {record.kind}"))

    async def _keep(self, record: Record, counts: bool) -> None:
        try:
            await self._store.add([record])
        finally:
            if counts:
                self._on_their_way.remove(record.timestamp_ms)
        self._created(record)

    async def close(self) -> None:
        """End what is on its way after a moment for the disk."""
        await self._tasks.finish(3.0)

    def _make(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int, now_ms: int) -> Record:
        me = self._key.public
        try:
            timestamp_ms, expires_ms = self._index.times_for(kind, me, subkey, lifetime_ms, now_ms)
        except LookupError as error:
            raise NotFound("There is no such record of this node to retract.") from error
        if self._rules[kind].retracts is None:  # a retraction is dated like its target
            dated_ms = self._membership.next_timestamp(timestamp_ms)
            timestamp_ms, expires_ms = dated_ms, expires_ms + dated_ms - timestamp_ms
        body = RecordBody(RECORD_VERSION, self._membership.mesh, kind, me, subkey, timestamp_ms, expires_ms, payload)
        return build_record(body, self._key.sign)

    def quota_retry_at_ms(self, kind: str, now_ms: int) -> int | None:
        """None while another record of the kind fits this node's quota, else the time at which one fits again."""
        if not self._rules[kind].quota:
            return None
        policy = self._policy()
        in_minute, in_day, in_subtree = self._index.quota_used(self._key.public, now_ms)
        in_minute += _between(self._on_their_way, now_ms // MINUTE_MS * MINUTE_MS, MINUTE_MS)
        coming = _between(self._on_their_way, now_ms // DAY_MS * DAY_MS, DAY_MS)
        full = in_subtree + coming >= policy.posts_per_day * SUBTREE_QUOTA_FACTOR
        if full or in_day + coming >= policy.posts_per_day:
            return (now_ms // DAY_MS + 1) * DAY_MS
        if in_minute >= policy.posts_per_minute:
            return (now_ms // MINUTE_MS + 1) * MINUTE_MS
        return None


def _between(times_ms: Sequence[int], start_ms: int, length_ms: int) -> int:
    return sum(1 for time_ms in times_ms if start_ms <= time_ms < start_ms + length_ms)
