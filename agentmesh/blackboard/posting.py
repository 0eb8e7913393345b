"""How a post comes to be: checked, within quota, masked, signed and stored, answered. One call, start to end.

State: the idempotency keys being worked on, so that two calls with one key make one post.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from agentmesh.blackboard.authors import AuthorMinutes
from agentmesh.blackboard.logic.hidden import shows_something, without_hidden
from agentmesh.blackboard.logic.limits import MAX_IDEMPOTENCY_KEY_CHARS, MAX_POST_BYTES, MAX_RAW_POST_BYTES
from agentmesh.blackboard.logic.post import (
    POST,
    Heading,
    PostPayload,
    check_author,
    check_text,
    check_topic,
    encode_post,
    is_utf8,
    read_heading,
)
from agentmesh.blackboard.logic.query import PostRow
from agentmesh.blackboard.names import Names, refuse_masked
from agentmesh.blackboard.ports import Posted, PostView, Publisher, Redaction, TextScrubber
from agentmesh.blackboard.related import related_posts
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.blackboard.store_write import Receipt
from agentmesh.core.clock import Clock
from agentmesh.core.errors import InvalidInput, QuotaExceeded
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS
from agentmesh.mesh.logic.record import ID_BYTES

_ID_CHARS: Final = 2 * ID_BYTES


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """A receipt as it is stored."""

    redactions: tuple[Redaction, ...]
    related: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a poster gave, checked."""

    text: str
    author: str
    topic: str | None
    reply_to: str | None

    def digest(self) -> bytes:
        return _digest(self.text, self.author, self.topic or "", self.reply_to or "")


class Poster:
    """Makes posts of this node."""

    def __init__(
        self,
        *,
        store: BlackboardStore,
        scrubber: TextScrubber,
        names: Names,
        publisher: Publisher,
        clock: Clock,
        own_node: bytes,
        idempotency_secret: bytes,
        minutes: AuthorMinutes,
        view: Callable[[PostRow], PostView],
    ) -> None:
        self._store = store
        self._scrubber = scrubber
        self._names = names
        self._publisher = publisher
        self._clock = clock
        self._own_node = own_node
        self._idempotency_secret = idempotency_secret
        self._minutes = minutes
        self._view = view
        self._in_flight: dict[bytes, asyncio.Event] = {}

    async def post(
        self, text: str, author: str, topic: str | None, reply_to: str | None, idempotency_key: str | None
    ) -> Posted:
        """See BlackboardService.post."""
        check_text(text, MAX_RAW_POST_BYTES)
        if not shows_something(text):
            raise InvalidInput("The text is empty: nothing of it can be seen.")
        refuse_masked("author's name", author)
        refuse_masked("topic", topic or "")
        asked = _Asked(text, check_author(author), check_topic(topic) if topic else None, reply_to)
        if not idempotency_key:
            return await self._post_new(asked, None)
        if len(idempotency_key) > MAX_IDEMPOTENCY_KEY_CHARS or not is_utf8(idempotency_key):
            raise InvalidInput(f"An idempotency key is at most {MAX_IDEMPOTENCY_KEY_CHARS} characters of UTF-8.")
        # It travels in the post, so that a node that lost its disk still knows it: keyed, or members could guess at weak ones.
        key = hashlib.blake2s(idempotency_key.encode(), key=self._idempotency_secret, digest_size=ID_BYTES).digest()
        while running := self._in_flight.get(key):
            await running.wait()
        done = self._in_flight[key] = asyncio.Event()
        try:
            return await self._answered(key, asked.digest()) or await self._post_new(asked, key)
        finally:
            del self._in_flight[key]
            done.set()

    async def _answered(self, key: bytes, asked: bytes) -> Posted | None:
        """The answer that this key got before."""
        found = await self._store.receipt(key)
        if found is None:
            return None
        post_id, receipt = found
        if receipt.asked not in (b"", asked):
            raise InvalidInput("This idempotency key was used for another post; use a new one for each post.")
        answer = msgspec.msgpack.decode(receipt.receipt, type=_Answer) if receipt.receipt else _Answer((), ())
        return self._posted(post_id, answer, await self._store.by_ids(answer.related))

    async def _post_new(self, asked: _Asked, key: bytes | None) -> Posted:
        target = await self._target(asked.reply_to) if asked.reply_to else None
        reserved_ms = self._clock.now_ms()
        self._minutes.reserve(asked.author, reserved_ms)
        try:
            self._check_quota(reserved_ms)
            await self._names.check_own("author's name", asked.author)
            if asked.topic is not None:
                await self._names.check_own("topic", asked.topic)
            masked = await self._scrubber.scrub(without_hidden(asked.text))
            check_text(masked.text, MAX_POST_BYTES)
            redactions = tuple(Redaction(r.kind, r.count) for r in masked.redactions)
            heading = _heading(masked.text, asked.topic)
            post = PostPayload(masked.text, asked.author, heading.topic, heading.branch, heading.kind, target, key)
            related = await related_posts(self._store, post, self._own_node)
            answer = _Answer(redactions, tuple(row.id for row in related))
            post_id = await self._publish(post, key, Receipt(asked.digest(), msgspec.msgpack.encode(answer)))
        except BaseException:
            self._minutes.give_back(asked.author, reserved_ms)
            raise
        return self._posted(post_id, answer, related)

    async def _publish(self, post: PostPayload, key: bytes | None, receipt: Receipt) -> bytes:
        if key is not None:
            self._store.stage(key, receipt)
        try:
            return (await self._publisher.publish(POST, b"", encode_post(post), POST_LIFETIME_MS)).id
        finally:
            if key is not None:
                self._store.unstage(key)

    def _check_quota(self, now_ms: int) -> None:
        retry_ms = self._publisher.quota_retry_at_ms(POST, now_ms)
        if retry_ms is not None:
            seconds = max(1, -(-(retry_ms - now_ms) // 1000))
            raise QuotaExceeded(f"This node has used up the mesh's quota of posts; try again in {seconds} s.")

    async def _target(self, reply_to: str) -> bytes:
        """A whole id may be of a post that has not arrived yet; a short one must be found."""
        wanted = reply_to.strip().lower()
        if len(wanted) == _ID_CHARS and all(c in "0123456789abcdef" for c in wanted):
            return bytes.fromhex(wanted)
        return (await self._store.find(wanted)).id

    def _posted(self, post_id: bytes, answer: _Answer, related: Sequence[PostRow]) -> Posted:
        return Posted(post_id.hex(), answer.redactions, tuple(self._view(row) for row in related))


def _heading(text: str, topic: str | None) -> Heading:
    """A topic that was given wins over the text's; the branch belongs to the text's topic."""
    heading = read_heading(text)
    if topic is None or (heading.topic or "").casefold() == topic.casefold():
        return heading
    return Heading(heading.kind, topic, None)


def _digest(*parts: str) -> bytes:
    text = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2s(text, digest_size=ID_BYTES).digest()
