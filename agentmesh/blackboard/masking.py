"""Masks what peers wrote before anyone sees it: takes stored posts in the order of their arrival, in batches.

Storing does not wait for this, so a flood from a peer costs the scrubber time and nobody else. What cannot be checked is
shown without its text and tried again. State: whether there is work; it lives in the database, so a restart goes on where this ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from agentmesh.blackboard.logic.hidden import without_hidden
from agentmesh.blackboard.logic.limits import MASKING_AGAIN_MS, SCRUB_BATCH, SCRUB_RETRY_MS, SHOWN_AT_ONCE
from agentmesh.blackboard.logic.post import PostPayload, decode_post
from agentmesh.blackboard.logic.query import PostRow
from agentmesh.blackboard.names import Names
from agentmesh.blackboard.ports import ScrubbedText, TextScrubber
from agentmesh.blackboard.store import BlackboardStore, draft
from agentmesh.blackboard.store_read import Waiting
from agentmesh.core.errors import AgentMeshError, ProtocolError
from agentmesh.mesh.logic.record import RecordBody

_log = logging.getLogger(__name__)

WITHHELD: Final = "(text withheld: this node could not check it for secrets)"
_UNCHECKED_NAME: Final = "?"
_MALFORMED: Final = PostPayload(text=WITHHELD, author="?")
_body_decoder = msgspec.msgpack.Decoder(RecordBody)


class Masking:
    """The loop that shows what waits."""

    def __init__(self, store: BlackboardStore, scrubber: TextScrubber, names: Names) -> None:
        self._store = store
        self._scrubber = scrubber
        self._names = names
        self._work = asyncio.Event()
        self._work.set()  # what waited when the node last ended
        self._idle = asyncio.Event()
        self._withheld = True  # perhaps, from the last run

    def kick(self) -> None:
        """There may be posts to mask."""
        self._idle.clear()
        self._work.set()

    async def settled(self) -> None:
        """Wait until everything stored so far is visible (or withheld)."""
        await self._idle.wait()

    async def run(self) -> None:
        """Mask for ever; what could not be checked is tried again a few times."""
        while True:
            try:
                async with asyncio.timeout(MASKING_AGAIN_MS / 1000 if self._withheld else None):
                    await self._work.wait()
            except TimeoutError:
                await self._guarded(self._try_again)
                continue
            self._work.clear()
            if await self._guarded(self._mask_all) and not self._work.is_set():
                self._idle.set()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except AgentMeshError as error:
            _log.warning("posts of peers wait to be shown: %s", error)
            await asyncio.sleep(SCRUB_RETRY_MS / 1000)
            self._work.set()
            return False
        return True

    async def _mask_all(self) -> None:
        while batch := await self._store.waiting(SCRUB_BATCH):
            await self._show(batch)

    async def _try_again(self) -> None:
        batch = await self._store.waiting(SCRUB_BATCH, again=True)
        self._withheld = bool(batch)
        if batch:
            await self._show(batch)

    async def _show(self, batch: Sequence[Waiting]) -> None:
        payloads = [_payload_of(post) for post in batch]
        scrubbed = await self._scrubber.scrub_many([without_hidden(payload.text) for payload in payloads])
        await self._look_for_outage(scrubbed)
        names = await self._names.masked(name for payload in payloads for name in _names_of(payload))
        rows: list[PostRow] = []
        withheld: list[bytes] = []
        for post, payload, masked in zip(batch, payloads, scrubbed, strict=True):
            rows.append(draft(post, _with_names(payload, names), WITHHELD if masked is None else masked.text))
            if masked is None or any(names[name] is None for name in _names_of(payload)):
                withheld.append(post.id)
        for start in range(0, len(rows), SHOWN_AT_ONCE):
            await self._store.show(rows[start : start + SHOWN_AT_ONCE], frozenset(withheld))
        self._withheld = self._withheld or bool(withheld)

    async def _look_for_outage(self, scrubbed: Sequence[ScrubbedText | None]) -> None:
        """A scrubber that cannot check anything is no verdict on these posts: they wait, and no attempt is counted.

        Raises:
            CannotCheck: so it is.
        """
        if all(masked is None for masked in scrubbed) and (await self._scrubber.scrub_many(["."]))[0] is None:
            raise CannotCheck


class CannotCheck(AgentMeshError):
    """Nothing can be checked for secrets at present."""


def _names_of(payload: PostPayload) -> list[str]:
    return [name for name in (payload.author, payload.topic, payload.branch) if name is not None]


def _with_names(payload: PostPayload, shown: Mapping[str, str | None]) -> PostPayload:
    return msgspec.structs.replace(
        payload,
        author=shown[payload.author] or _UNCHECKED_NAME,
        topic=payload.topic and shown[payload.topic],
        branch=payload.branch and shown[payload.branch],
    )


def _payload_of(post: Waiting) -> PostPayload:
    try:
        return decode_post(_body_decoder.decode(post.body).payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, ProtocolError):
        _log.error("the stored post %s is not readable", post.id.hex())  # it was when it was accepted
        return _MALFORMED
