"""Publishes this node's `split` record: claims at once, other changes seldom, and again before the last word grows old.

    telling = Telling(publish, payload_now, node_count)
    telling.start(); telling.changed(urgent=True); await telling.stop()

Owns one task, and what is known of what is out there. What is said is the caller's; when, logic/presence_timing.py's, but for claims.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.presence_timing import (
    MAX_INTERVAL_MS,
    RETRY_MS,
    due_ms,
    interval_ms,
    lifetime_ms,
)
from agentmesh.inference.presence import GOODBYE_TIMEOUT_S, SUBKEY, Publish
from agentmesh.mesh.logic.kinds import SPLIT

_log = logging.getLogger(__name__)

URGENT_MS: Final = 20  # a claim and what changes with it go out together
URGENT_SPACING_MS: Final = 50  # between two claims: one that flaps floods nobody
URGENT_RETRY_MS: Final = 500


class Telling:
    """See the module.

    Args:
        payload_now: what there is to say; None: nothing, so that the last word is taken back.
        empty: the payload that takes it back.
    """

    def __init__(
        self,
        publish: Publish,
        payload_now: Callable[[], bytes | None],
        empty: bytes,
        node_count: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        self._publish = publish
        self._payload_now = payload_now
        self._empty = empty
        self._node_count = node_count
        self._now_ms = now_ms
        self._tasks = TaskSet("split record")
        self._woken = asyncio.Event()
        self._changed_ms: int | None = None
        self._urgent_ms: int | None = None
        self._retry_ms: int | None = None
        self._published_ms: int | None = None
        self._last: bytes | None = None  # what is out there and would have to be taken back
        self._is_missed = False
        self.has_published = False

    def start(self) -> None:
        """Begin; what there is to say now is said soon."""
        self.changed()
        self._tasks.spawn(self._run(), name="publish")

    def changed(self, *, urgent: bool = False) -> None:
        """There may be something else to say. Several calls in a row are told once."""
        now_ms = self._now_ms()
        if self._changed_ms is None:
            self._changed_ms = now_ms
        if urgent and self._urgent_ms is None:
            self._urgent_ms = now_ms
            self._retry_ms = None
        self._woken.set()

    def again(self) -> None:
        """Somebody may have missed it: tell it once more, soon, though nothing changed."""
        if self._last is not None:
            self._is_missed = True
            self.changed()

    def found(self, payload: bytes) -> None:
        """An earlier run of this node said this, and did not take it back."""
        if not self.has_published:
            self._last = payload
            self.changed()

    async def stop(self) -> None:
        """Take back what was said, if it can be done quickly; else it ends by itself."""
        await self._tasks.close()
        if self._last is None:
            return
        lifetime = lifetime_ms(self._node_count(), len(self._last))
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._publish(SPLIT.name, SUBKEY, self._empty, lifetime)
        except (AgentMeshError, TimeoutError) as error:
            _log.info("what this node said of splits was not taken back: %s", error)
        self._last = None

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            wait_ms = self.next_ms() - self._now_ms()
            if wait_ms <= 0:
                try:
                    await self.publish_now()
                except Exception:  # noqa: BLE001 - the root of a task; nothing would be told any more
                    _log.exception("what this node says of splits could not be told")
                    self._retry_ms = self._now_ms() + RETRY_MS
                continue
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def next_ms(self) -> int:
        """When something is to be told next."""
        if self._retry_ms is not None:
            return self._retry_ms
        last, now_ms = self._published_ms, self._now_ms()
        if self._changed_ms is None and self._last is None:
            return now_ms + MAX_INTERVAL_MS  # nothing to say, and nothing was said
        due = due_ms(now_ms, changed_ms=self._changed_ms, published_ms=last, every_ms=self._every_ms())
        if self._urgent_ms is None:
            return due
        spaced = self._urgent_ms if last is None else max(self._urgent_ms, last + URGENT_SPACING_MS - URGENT_MS)
        return min(due, spaced + URGENT_MS)

    async def publish_now(self) -> None:
        """Say what there is, unless it was said and is not old. A failure is tried again."""
        urgent_ms = self._urgent_ms
        self._changed_ms = self._urgent_ms = self._retry_ms = None
        payload = self._payload_now()
        if payload == self._last and (payload is None or not (self._is_missed or self._is_old())):
            return
        said = self._empty if payload is None else payload
        before = self._last
        lifetime = lifetime_ms(self._node_count(), max(len(said), len(before or b"")))
        self._last = payload or before  # one that is cut off by `stop` may be out there all the same
        try:
            await self._publish(SPLIT.name, SUBKEY, said, lifetime)
        except Exception as error:
            self._last, self._urgent_ms = before, urgent_ms
            if not isinstance(error, AgentMeshError):
                raise
            _log.info("what this node says of splits was not told: %s", error)
            self._retry_ms = self._now_ms() + (RETRY_MS if urgent_ms is None else URGENT_RETRY_MS)
            return
        self.has_published, self._is_missed = True, False
        self._published_ms = self._now_ms()
        self._last = payload

    def _every_ms(self) -> int:
        return interval_ms(self._node_count(), len(self._last or b""))

    def _is_old(self) -> bool:
        return self._published_ms is None or self._now_ms() >= self._published_ms + self._every_ms()
