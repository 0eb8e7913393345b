"""The board's one service: what MCP, command line and HTTP all call. Checks, masks, posts, finds, waits.

Owns the order in which a post comes to be (check, quota, mask, sign and store, answer) and the promises about reading: nothing
unmasked is shown, no page shifts, nothing is unread twice. State, changed on the event loop only: the author names' last
minute, the idempotency keys in flight, locks of readers. Knows the mesh as `Publisher` and the scrubber as `TextScrubber`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

from agentmesh.blackboard.arguments import checked_limit, checked_reader, checked_wait_s, filters_of
from agentmesh.blackboard.authors import AuthorMinutes
from agentmesh.blackboard.live import Live
from agentmesh.blackboard.logic.cursor import (
    FeedCursor,
    SearchCursor,
    UnreadCursor,
    decode_cursor,
    encode_cursor,
    question_digest,
)
from agentmesh.blackboard.logic.limits import (
    AUTHOR_WINDOW_MS,
    DEFAULT_PAGE,
    HEARTBEAT_S,
    MAX_EVENT_ID_CHARS,
    MAX_PAGE,
    RESUME_EVENTS,
    RETRACTION_LIFETIME_MS,
)
from agentmesh.blackboard.logic.post import RETRACTION
from agentmesh.blackboard.logic.query import Filters, PostRow, clean
from agentmesh.blackboard.masking import Masking
from agentmesh.blackboard.names import Names
from agentmesh.blackboard.ports import BoardEvent, NameCount, Page, Posted, PostView, Publisher, TextScrubber
from agentmesh.blackboard.posting import Poster
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.core.clock import Clock
from agentmesh.core.errors import InvalidInput, NotFound
from agentmesh.core.tasks import TaskSet
from agentmesh.mesh.identity import encode_id
from agentmesh.mesh.logic.record import Record

_log = logging.getLogger(__name__)


def _unnamed(node: bytes) -> str | None:
    return None


class BlackboardService:
    """See the module. `start` before use, `close` before the store is closed; the store is opened and closed by its owner."""

    def __init__(
        self,
        *,
        store: BlackboardStore,
        scrubber: TextScrubber,
        publisher: Publisher,
        clock: Clock,
        own_node: bytes,
        idempotency_secret: bytes = b"",
        author_posts_per_minute: Callable[[], int],
        default_author: str = "anonymous",
        node_name: Callable[[bytes], str | None] = _unnamed,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._own_node = own_node
        self._default_author = default_author
        self._node_name = node_name
        self._tasks = TaskSet("blackboard")
        self._live = Live(self.view)
        names = Names(scrubber)
        self._masking = Masking(store, scrubber, names)
        self._minutes = AuthorMinutes(author_posts_per_minute)
        self._poster = Poster(
            store=store,
            scrubber=scrubber,
            names=names,
            publisher=publisher,
            clock=clock,
            own_node=own_node,
            idempotency_secret=idempotency_secret or own_node,
            minutes=self._minutes,
            view=self.view,
        )
        self._reader_locks: WeakValueDictionary[tuple[str, bytes], asyncio.Lock] = WeakValueDictionary()
        store.on_visible = self._live.visible
        store.on_gone = self._gone

    async def start(self) -> None:
        """Take up what the last run left: author names' last minute, peers' posts that wait to be shown.

        Raises:
            StorageError: the board cannot be read.
        """
        now_ms = self._clock.now_ms()
        for author, posted_ms in await self._store.authors_since(now_ms - AUTHOR_WINDOW_MS):
            self._minutes.remember(author, posted_ms)
        self._live.go_on_from(await self._store.last_arrival())
        self._tasks.spawn(self._masking.run(), name="masking")

    async def close(self) -> None:
        """End the background work."""
        await self._tasks.close()

    # ------------------------------------------------------------------ what the mesh tells us

    async def on_records(self, records: Sequence[Record]) -> None:
        """Records are stored; posts of peers among them wait to be masked."""
        self._masking.kick()

    async def on_dropped(self, ids: Sequence[bytes], reason: str) -> None:
        """Records are gone; the store told us already what disappeared with them."""
        _log.debug("%d records dropped: %s", len(ids), reason)

    def _gone(self, rows: Sequence[PostRow]) -> None:
        self._live.gone(rows, self._clock.now_ms())

    async def settled(self) -> None:
        """Wait until everything that is stored can be seen."""
        await self._masking.settled()

    # ------------------------------------------------------------------ writing

    async def post(
        self,
        text: str,
        *,
        author: str | None = None,
        topic: str | None = None,
        reply_to: str | None = None,
        idempotency_key: str | None = None,
    ) -> Posted:
        """Mask, sign, store and spread a text; it is on disk when this returns.

        Without an author it is the node's default. A repeated `idempotency_key` gets the first answer and posts nothing, also after a restart.

        Raises:
            InvalidInput: text, author, topic, reply_to or key cannot be used, or the text is mostly secret.
            NotFound, Ambiguous: `reply_to` is a short id of no post, or of several.
            QuotaExceeded: the author's name or this node has posted too much; says when to try again.
            StorageError: it could not be stored.
        """
        return await self._poster.post(text, author or self._default_author, topic, reply_to, idempotency_key)

    async def retract(self, id_text: str) -> PostView:
        """Take back a post of this node, here and everywhere. Returns what was retracted.

        Raises:
            InvalidInput: it is another node's, or not an id.
            NotFound, Ambiguous: there is no one such post.
            StorageError: the retraction could not be stored.
        """
        row = await self._store.find(id_text)
        if row.node != self._own_node:
            raise InvalidInput(
                f"Post {row.id.hex()[:8]} is of another node; only the node that posted it can retract it."
            )
        try:
            await self._publisher.publish(RETRACTION, row.id, b"", RETRACTION_LIFETIME_MS)
        except LookupError as error:
            raise NotFound(f"There is no post {row.id.hex()[:8]} here any more.") from error
        await self._store.drop([row.id])  # the mesh drops it too; whoever asks next must not find it
        return self.view(row)

    # ------------------------------------------------------------------ reading

    async def search(
        self,
        query: str,
        *,
        topic: str | None = None,
        kind: str | None = None,
        author: str | None = None,
        since_hours: float | None = None,
        thread: str | None = None,
        unanswered: bool = False,
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> Page:
        """Posts that hold the words, best first; with fewer words when few hold all. Without a word: the feed.

        Raises:
            InvalidInput: a filter, the limit or the cursor cannot be used.
            NotFound, Ambiguous: `thread` is no one post.
            StorageError: the board cannot be read.
        """
        filters = await filters_of(
            self._store,
            self._clock.now_ms(),
            topic=topic,
            kind=kind,
            author=author,
            since_hours=since_hours,
            thread=thread,
            unanswered=unanswered,
        )
        limit = checked_limit(limit)
        if not clean(query):
            return await self._page_by_time(filters, limit, cursor)
        if filters.impossible:
            return Page((), None)
        digest = question_digest(query, filters.digest())
        position = decode_cursor(cursor, SearchCursor, digest) if cursor else None
        found = await self._store.search(query, filters, limit, position)
        return self._page(found.rows, None if found.cursor is None else encode_cursor(found.cursor))

    async def feed(
        self,
        *,
        topic: str | None = None,
        kind: str | None = None,
        author: str | None = None,
        since_hours: float | None = None,
        thread: str | None = None,
        unanswered: bool = False,
        unread_only: bool = False,
        reader: str | None = None,
        wait_seconds: float = 0,
        limit: int = DEFAULT_PAGE,
        cursor: str | None = None,
    ) -> Page:
        """Posts, newest first.

        `unread_only`: only what this `reader` was not given yet with these filters. `wait_seconds`: with unread_only, wait
        while there is nothing; else wait for the next post that fits. Answers with what there is when the time is over.

        Raises:
            InvalidInput: a filter, the reader, the limit or the cursor cannot be used.
            NotFound, Ambiguous: `thread` is no one post.
            TooBusy, StorageError: too many wait; the board cannot be read.
        """
        filters = await filters_of(
            self._store,
            self._clock.now_ms(),
            topic=topic,
            kind=kind,
            author=author,
            since_hours=since_hours,
            thread=thread,
            unanswered=unanswered,
        )
        limit = checked_limit(limit)
        checked_wait_s(wait_seconds)
        if unread_only:
            name = checked_reader(reader)
            if cursor:
                decode_cursor(cursor, UnreadCursor, filters.digest())
            return await self._wait_for(filters, wait_seconds, lambda: self._unread(name, filters, limit), 0)
        if wait_seconds == 0 or cursor:
            return await self._page_by_time(filters, limit, cursor)
        seen = await self._store.last_arrival()
        return await self._wait_for(filters, wait_seconds, lambda: self._newest(filters, limit), seen)

    async def get(self, id_text: str) -> PostView:
        """One post by its id or an unambiguous beginning of it.

        Raises:
            InvalidInput, NotFound, Ambiguous: there is no one such post.
        """
        return self.view(await self._store.find(id_text))

    async def thread(self, id_text: str, limit: int = MAX_PAGE) -> Page:
        """The whole conversation that a post is in, newest first."""
        return await self.feed(thread=id_text, limit=limit)

    async def unanswered(self, limit: int = DEFAULT_PAGE) -> Page:
        """Questions that nobody has replied to."""
        return await self.feed(unanswered=True, limit=limit)

    async def claims(self) -> tuple[PostView, ...]:
        """The claims that are in force."""
        return tuple(self.view(row) for row in await self._store.open_claims())

    async def topics(self) -> tuple[NameCount, ...]:
        """Topics with live posts, last used first."""
        return tuple(NameCount(*row) for row in await self._store.names("topic"))

    async def authors(self) -> tuple[NameCount, ...]:
        """Authors' names with live posts, last used first."""
        return tuple(NameCount(*row) for row in await self._store.names("author"))

    async def count(self) -> int:
        """How many posts can be seen."""
        return await self._store.count()

    # ------------------------------------------------------------------ the live stream

    async def events(self, after: str | None = None) -> AsyncGenerator[BoardEvent | None]:
        """What happens from now on, or since the event `after`; None at first and as a heartbeat. Ends after `dropped`.

        Raises:
            TooBusy: too many follow the board.
        """
        with self._live.subscription() as subscription:
            yield None
            replayed = 0
            async for event in self._missed(after):
                replayed = int(event.id)
                yield event
            while True:
                event = await subscription.next(HEARTBEAT_S)
                if event is None or event.event != "post" or int(event.id) > replayed:
                    yield event
                if event is not None and event.event == "dropped":
                    return

    async def _missed(self, after: str | None) -> AsyncGenerator[BoardEvent]:
        if after is None or not after.isdecimal() or len(after) > MAX_EVENT_ID_CHARS:
            return
        position = int(after)
        while rows := await self._store.arrived_after(position, RESUME_EVENTS):
            for row in rows:
                position = row.arrival
                yield BoardEvent("post", str(row.arrival), self.view(row))

    # ------------------------------------------------------------------ parts

    def view(self, row: PostRow) -> PostView:
        """A post as it is shown. Everything stored had its signature checked."""
        return PostView(
            id=row.id.hex(),
            kind=row.kind,
            topic=row.topic,
            branch=row.branch,
            text=row.text,
            author=row.author,
            node_id=encode_id(row.node),
            node_name=self._node_name(row.node),
            created_at=row.created_ms,
            expires_at=row.expires_ms,
            reply_to=None if row.reply_to is None else row.reply_to.hex(),
            verified=True,
        )

    def _page(self, rows: Sequence[PostRow], next_cursor: str | None) -> Page:
        return Page(tuple(self.view(row) for row in rows), next_cursor)

    async def _page_by_time(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        digest = filters.digest()
        below = decode_cursor(cursor, FeedCursor, digest).below if cursor else None
        if filters.impossible:
            return Page((), None)
        rows, more_below = await self._store.feed(filters, limit, below)
        return self._page(rows, None if more_below is None else encode_cursor(FeedCursor(digest, more_below)))

    async def _newest(self, filters: Filters, limit: int) -> tuple[Sequence[PostRow], str | None]:
        if filters.impossible:
            return (), None
        rows, below = await self._store.feed(filters, limit, None)
        return rows, None if below is None else encode_cursor(FeedCursor(filters.digest(), below))

    async def _unread(self, reader: str, filters: Filters, limit: int) -> tuple[Sequence[PostRow], str | None]:
        view = filters.digest()
        lock = self._reader_locks.setdefault((reader, view), asyncio.Lock())
        async with lock:  # two calls of one reader must not be given the same posts
            rows, unread, more = await self._store.unread(reader, view, filters, limit)
            if rows:
                await self._store.keep_unread(reader, view, unread)
        rows = sorted(rows, key=lambda row: -row.order)
        return rows, encode_cursor(UnreadCursor(view)) if more else None

    async def _wait_for(
        self,
        filters: Filters,
        wait_s: float,
        read: Callable[[], Awaitable[tuple[Sequence[PostRow], str | None]]],
        seen: int,
    ) -> Page:
        """Read until something arrived after `seen` is there, or the time is over."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + wait_s
        with self._live.waiter(filters) as waiter:
            while True:
                waiter.clear()
                rows, cursor = await read()
                left_s = ends - loop.time()
                if any(row.arrival > seen for row in rows) or left_s <= 0 or not await waiter.wait(left_s):
                    return self._page(rows, cursor)
