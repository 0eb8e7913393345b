"""Tells the mesh what this node offers: after each change, and again before the last word grows old.

    publisher = Publisher(publish, make_offer, node_count)
    publisher.start(); publisher.changed(); await publisher.stop()

Owns one task. When is logic/presence_timing.py's; what is told, the caller's. A node that never offered anything says nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.presence import NodeOffer, encode_offer
from agentmesh.inference.logic.presence_timing import (
    RETRY_MS,
    due_ms,
    interval_ms,
    lifetime_ms,
)
from agentmesh.mesh.logic.kinds import NODE

_log = logging.getLogger(__name__)

SUBKEY: Final = b""  # one record a node: a newer one takes its place
GOODBYE_TIMEOUT_S: Final = 1.0

Publish = Callable[[str, bytes, bytes, int], Awaitable[object]]
"""mesh.publish: kind, subkey, payload, lifetime in ms."""


class Publisher:
    """See the module.

    Args:
        make_offer: what there is to say now.
        is_worth_saying: whether an offer says anything; else it is told only to take an earlier one back.
        node_count: members of the mesh, as far as known.
        now_ms: a clock that only goes forward.
    """

    def __init__(
        self,
        publish: Publish,
        make_offer: Callable[[], NodeOffer],
        node_count: Callable[[], int],
        *,
        is_worth_saying: Callable[[NodeOffer], bool] = lambda offer: bool(offer.models) or offer.has_files,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._publish = publish
        self._make_offer = make_offer
        self._node_count = node_count
        self._is_worth_saying = is_worth_saying
        self._now_ms = now_ms or _loop_ms
        self._tasks = TaskSet("presence")
        self._woken = asyncio.Event()
        self._changed_ms: int | None = None
        self._published_ms: int | None = None
        self._last_payload: bytes | None = None  # None: nothing is out there that would have to be taken back
        self._retry_ms: int | None = None

    def start(self) -> None:
        """Begin; what there is to say now is said soon."""
        self.changed()
        self._tasks.spawn(self._run(), name="publish")

    def changed(self) -> None:
        """Something of the offer may have changed. Several calls in a row are told once."""
        if self._changed_ms is None:
            self._changed_ms = self._now_ms()
            self._woken.set()

    async def stop(self) -> None:
        """Take back what was said, if it can be done quickly; else it ends by itself."""
        await self._tasks.close()
        if self._last_payload is None:
            return
        offer = self._make_offer()
        empty = NodeOffer(offer.version, offer.program, "", 0, ())
        lifetime = lifetime_ms(self._node_count(), len(self._last_payload))
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await self._publish(NODE.name, SUBKEY, encode_offer(empty), lifetime)
        except (AgentMeshError, TimeoutError) as error:
            _log.info("the offer was not taken back: %s", error)
        self._last_payload = None

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            wait_ms = self.next_ms() - self._now_ms()
            if wait_ms <= 0:
                await self.publish_now()
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
        every = interval_ms(self._node_count(), len(self._last_payload or b""))
        return due_ms(self._now_ms(), changed_ms=self._changed_ms, published_ms=self._published_ms, every_ms=every)

    async def publish_now(self) -> None:
        """Say what there is, unless there is nothing and nothing was said before. A failure is tried again."""
        self._changed_ms = self._retry_ms = None
        offer = self._make_offer()
        is_something = self._is_worth_saying(offer)
        if not is_something and self._last_payload is None:
            self._published_ms = self._now_ms()
            return
        payload = encode_offer(offer)
        if payload == self._last_payload and not self._is_old():
            return
        lifetime = lifetime_ms(self._node_count(), max(len(payload), len(self._last_payload or b"")))
        try:
            await self._publish(NODE.name, SUBKEY, payload, lifetime)
        except AgentMeshError as error:
            _log.info("the offer was not told: %s", error)
            self._retry_ms = self._now_ms() + RETRY_MS
            return
        self._published_ms = self._now_ms()
        self._last_payload = payload if is_something else None

    def _is_old(self) -> bool:
        every = interval_ms(self._node_count(), len(self._last_payload or b""))
        return self._published_ms is None or self._now_ms() >= self._published_ms + every


def _loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
