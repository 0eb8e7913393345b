"""The board on disk: records of every kind for the mesh, and posts as they are shown.

Owns blackboard.db of one mesh. The mesh driver uses it as its RecordStore; the service uses the rest. Posts of this node
are visible as soon as `add` returns (they were masked before they were signed); posts of peers are stored at once, for
replication, and wait to be masked before anyone sees them. Everything is async; the work happens on the database's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agentmesh.blackboard import migrations, store_read, store_search, store_write
from agentmesh.blackboard.database import Database
from agentmesh.blackboard.logic.cursor import SearchCursor
from agentmesh.blackboard.logic.limits import SEARCH_BUDGET_MS
from agentmesh.blackboard.logic.post import POST, PostPayload, decode_post, shown, shown_topic
from agentmesh.blackboard.logic.query import Filters, PostRow
from agentmesh.blackboard.logic.unread import Unread, encode_unread
from agentmesh.blackboard.store_read import Waiting
from agentmesh.blackboard.store_search import Found
from agentmesh.blackboard.store_write import Receipt
from agentmesh.core.clock import Clock
from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.record import Record, SignedRecord

# Dropped in one job: about 80 ms of the writer, so that posts come in between when a day's worth expires.
_DROP_CHUNK: Final = 200

RowsSeen = Callable[[Sequence[PostRow]], None]


def _nobody(rows: Sequence[PostRow]) -> None:
    pass


class BlackboardStore:
    """blackboard.db. `own_node` is this node's public key.

    Set before `open`: `on_visible` (posts that can be seen now, in order of arrival), `on_gone` (posts that cannot any
    more), `on_reset` (the file was damaged; everything is gone from it: rebuild the index and reconcile).
    """

    def __init__(self, path: Path, own_node: bytes, clock: Clock) -> None:
        self._own_node = own_node
        self._clock = clock
        self._staged: dict[bytes, Receipt] = {}
        self._rankings = store_search.Rankings()
        self._database = Database(
            path,
            clock=clock,
            prepare=migrations.prepare,
            repair=migrations.rebuild_search,
            on_reset=self._was_reset,
        )
        self.on_visible: RowsSeen = _nobody
        self.on_gone: RowsSeen = _nobody
        self.on_reset: Callable[[str], None] = lambda sentence: None

    async def open(self) -> None:
        """Open or create the file; a damaged one is moved aside (`on_reset` says so).

        Raises:
            StorageError: it cannot be used.
        """
        await self._database.open()

    async def close(self) -> None:
        """Finish what is queued for the disk, then close."""
        await self._database.close()

    def forget_rankings(self) -> None:
        """Later pages of searches begun before may shift a little."""
        self._rankings = store_search.Rankings()

    def _was_reset(self, sentence: str) -> None:
        self.forget_rankings()
        self.on_reset(sentence)

    # ------------------------------------------------------------------ records, for the mesh

    async def add(self, records: Sequence[Record]) -> None:
        """Store records; they are on disk when this returns. Known ids stay as they are.

        Raises:
            StorageError: nothing of this call was stored.
        """
        own: dict[bytes, PostRow] = {}
        receipts: dict[bytes, tuple[bytes, Receipt]] = {}
        for record in records:
            if record.kind == POST and record.author == self._own_node:
                payload = decode_post(record.payload)
                own[record.id] = draft(record, payload, payload.text)
                if payload.idempotency is not None:
                    # Without a staged receipt it is a post of ours that comes back from a peer: remember at least its key.
                    receipt = self._staged.get(payload.idempotency, Receipt(b"", b""))
                    receipts[record.id] = (payload.idempotency, receipt)
        now_ms = self._clock.now_ms()
        visible = await self._database.write(lambda c: store_write.add_records(c, records, own, receipts, now_ms))
        if visible:
            self.on_visible(visible)

    async def drop(self, ids: Sequence[bytes]) -> None:
        """Delete records and what is shown of them; posts leave a tombstone for their author's quota.

        Raises:
            StorageError: some are still there.
        """
        for start in range(0, len(ids), _DROP_CHUNK):
            await self._drop_chunk(ids[start : start + _DROP_CHUNK])

    async def _drop_chunk(self, ids: Sequence[bytes]) -> None:
        now_ms = self._clock.now_ms()
        gone = await self._database.write(lambda c: store_write.drop_records(c, ids, now_ms))
        if gone:
            self.on_gone(gone)

    async def load(self, ids: Sequence[bytes]) -> list[SignedRecord]:
        """The stored records among `ids`, in the order asked for."""
        return await self._database.read(lambda c, _: store_read.load(c, ids))

    async def load_kind(self, kind: str) -> list[SignedRecord]:
        """Every stored record of a kind, oldest arrival first: what Trust needs at start."""
        return await self._database.read(lambda c, _: store_read.load_kind(c, kind))

    async def load_index(self) -> tuple[list[StoredEntry], list[Tombstone]]:
        """Everything stored, without payloads, and the quota tombstones: for RecordIndex.restore."""
        return await self._database.read(lambda c, _: store_read.load_index(c))

    # ------------------------------------------------------------------ posting

    def stage(self, key: bytes, receipt: Receipt) -> None:
        """Keep this receipt in the transaction that stores the post with the idempotency key `key`."""
        self._staged[key] = receipt

    def unstage(self, key: bytes) -> None:
        self._staged.pop(key, None)

    async def receipt(self, key: bytes) -> tuple[bytes, Receipt] | None:
        """(post id, receipt) of an idempotency key that was used."""
        return await self._database.read(lambda c, _: store_read.receipt(c, key))

    async def authors_since(self, since_ms: int) -> list[tuple[str, int]]:
        """(author's name, time) of each post of this node since then."""
        return await self._database.read(lambda c, _: store_read.authors_since(c, self._own_node, since_ms))

    async def open_claims(self) -> list[PostRow]:
        """The newest claims that nothing has ended."""
        now_ms = self._clock.now_ms()
        return await self._database.read(lambda c, _: store_read.open_claims(c, now_ms))

    # ------------------------------------------------------------------ masking what peers wrote

    async def waiting(self, limit: int, *, again: bool = False) -> list[Waiting]:
        """Posts of peers that are not shown yet, longest waiting first; `again`: those shown without their text."""
        return await self._database.read(lambda c, _: store_read.waiting(c, limit, again=again))

    async def show(self, posts: Sequence[PostRow], withheld: frozenset[bytes] = frozenset()) -> None:
        """Make masked posts visible; those dropped meanwhile stay gone. `withheld` ids are to be tried again."""
        visible = await self._database.write(lambda c: store_write.show_posts(c, posts, withheld))
        if visible:
            self.on_visible(visible)

    # ------------------------------------------------------------------ reading

    async def search(self, query: str, filters: Filters, limit: int, cursor: SearchCursor | None) -> Found:
        """One page, best first; at most 100 ms go into finding.

        Raises:
            InvalidInput: the query is too long.
            StorageError: the database cannot be read.
        """
        now_ms, rankings = self._clock.now_ms(), self._rankings
        return await self._database.read(
            lambda c, deadline: store_search.search(
                c, deadline, query=query, filters=filters, limit=limit, now_ms=now_ms, cursor=cursor, rankings=rankings
            ),
            SEARCH_BUDGET_MS,
        )

    async def feed(self, filters: Filters, limit: int, below: int | None) -> tuple[list[PostRow], int | None]:
        """Posts below a place, newest first, and the place to go on below."""
        now_ms = self._clock.now_ms()
        return await self._database.read(
            lambda c, deadline: store_search.feed(
                c, deadline, filters=filters, limit=limit, now_ms=now_ms, below=below
            ),
            SEARCH_BUDGET_MS,
        )

    async def unread(
        self, reader: str, view: bytes, filters: Filters, limit: int
    ) -> tuple[list[PostRow], Unread, bool]:
        """Posts that the reader has not seen, what is unread after them, and whether that holds more; marks nothing."""
        now_ms = self._clock.now_ms()
        return await self._database.read(
            lambda c, _: store_read.unread(c, reader=reader, view=view, filters=filters, limit=limit, now_ms=now_ms)
        )

    async def keep_unread(self, reader: str, view: bytes, unread: Unread) -> None:
        """Remember what the reader has not seen, across restarts."""
        now_ms, raw = self._clock.now_ms(), encode_unread(unread)
        await self._database.write(lambda c: store_write.keep_unread(c, reader, view, raw, now_ms))

    async def find(self, id_text: str) -> PostRow:
        """The post with this id or unambiguous beginning of one.

        Raises:
            InvalidInput, NotFound, Ambiguous: there is no one such post.
        """
        now_ms = self._clock.now_ms()
        return await self._database.read(lambda c, _: store_read.find(c, id_text, now_ms))

    async def by_ids(self, ids: Sequence[bytes]) -> list[PostRow]:
        """The live posts among `ids`, in the order asked for."""
        now_ms = self._clock.now_ms()
        return await self._database.read(lambda c, _: store_read.by_ids(c, ids, now_ms))

    async def arrived_after(self, arrival: int, limit: int) -> list[PostRow]:
        """Live posts that became visible after `arrival`."""
        now_ms = self._clock.now_ms()
        return await self._database.read(lambda c, _: store_read.arrived_after(c, arrival, limit, now_ms))

    async def last_arrival(self) -> int:
        """The number of the last post that became visible."""
        return await self._database.read(lambda c, _: store_read.last_arrival(c))

    async def names(self, sort: str) -> list[tuple[str, int, int]]:
        """(name, live posts, time of the last) of `topic` or `author` names, last used first."""
        return await self._database.read(lambda c, _: store_read.names(c, sort), SEARCH_BUDGET_MS)

    async def count(self) -> int:
        """How many posts are shown."""
        return await self._database.read(lambda c, _: store_read.count(c))


def draft(record: Record | Waiting, payload: PostPayload, text: str) -> PostRow:
    """A post about to be laid down; its place and arrival are the store's to give."""
    return PostRow(
        order=0,
        arrival=0,
        id=record.id,
        kind=payload.kind,
        topic=None if payload.topic is None else shown_topic(payload.topic),
        branch=None if payload.branch is None else shown_topic(payload.branch),
        text=text,
        author=shown(payload.author),
        node=record.author,
        created_ms=record.timestamp_ms,
        expires_ms=record.expires_ms,
        reply_to=payload.reply_to,
        closed=False,
    )
