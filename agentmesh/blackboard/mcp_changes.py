"""Tells clients that a resource changed, in both protocol eras, from one event stream of the node.

Until 2025-11-25 a client subscribes address by address (`resources/subscribe`) and gets bare notifications; since
2026-07-28 it opens a stream (`subscriptions/listen`) that carries them. The node is listened to from the first
subscription on and not before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated

from agentmesh.blackboard.board_client import BoardClient
from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.blackboard.logic import mcp_uris
from agentmesh.core.tasks import TaskSet

Context = ServerRequestContext[Any, Any]

_log = logging.getLogger(__name__)
_SESSION_HEADER: Final = "mcp-session-id"


class _Subscriber:
    """One session of the older era: how to reach it, and what it watches."""

    def __init__(self, session: ServerSession) -> None:
        self.session = session
        self.uris: dict[str, None] = {}


class Changes:
    """Answers subscribe, unsubscribe and listen, and passes on what the node tells."""

    def __init__(self, board: BoardClient, tasks: TaskSet) -> None:
        self._board = board
        self._tasks = tasks
        self._listening = False
        # By session, the one that subscribed last at the end: a client that vanished is forgotten in time.
        self._subscribers: OrderedDict[str, _Subscriber] = OrderedDict()
        self._listened: Counter[str] = Counter()  # by address, how many listeners of the newer era watch it
        self._bus = InMemorySubscriptionBus()
        self._listen = ListenHandler(self._bus, max_subscriptions=limits.MAX_SUBSCRIBERS)

    async def listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """2026-07-28: the stream of changes; it lasts until the client leaves it."""
        if len(params.notifications.resource_subscriptions or ()) > limits.MAX_SUBSCRIPTIONS:
            raise MCPError(
                types.INVALID_PARAMS, f"At most {limits.MAX_SUBSCRIPTIONS} resources can be watched at once."
            )
        self._start()
        watched = params.notifications.resource_subscriptions or []
        self._listened.update(watched)
        try:
            return await self._listen(ctx, params)
        finally:
            self._listened.subtract(watched)
            self._listened += Counter()  # forgets those that nobody watches any more

    async def subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Until 2025-11-25: watch one address; one that names nothing never changes. Raises MCPError: too many are watched."""
        key = _session_key(ctx)
        subscriber = self._subscribers.setdefault(key, _Subscriber(ctx.session))
        if len(subscriber.uris) >= limits.MAX_SUBSCRIPTIONS and params.uri not in subscriber.uris:
            raise MCPError(
                types.INVALID_PARAMS, f"At most {limits.MAX_SUBSCRIPTIONS} resources can be watched at once."
            )
        subscriber.session = ctx.session
        subscriber.uris[params.uri] = None
        self._subscribers.move_to_end(key)
        if len(self._subscribers) > limits.MAX_SUBSCRIBERS:
            self._subscribers.popitem(last=False)
        self._start()
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        key = _session_key(ctx)
        if (subscriber := self._subscribers.get(key)) is not None:
            subscriber.uris.pop(params.uri, None)
            if not subscriber.uris:
                del self._subscribers[key]
        return types.EmptyResult()

    def _start(self) -> None:
        if not self._listening:
            self._listening = True
            self._tasks.spawn(self._pass_on(), name="changes")

    async def _pass_on(self) -> None:
        async for event in self._board.events():
            for uri in self._all_watched() if event.post is None else mcp_uris.changed_by(event.post):
                await self._bus.publish(ResourceUpdated(uri))
                for key, subscriber in [*self._subscribers.items()]:
                    if uri in subscriber.uris:
                        await self._notify(key, subscriber, uri)

    def _all_watched(self) -> tuple[str, ...]:
        older = (uri for subscriber in self._subscribers.values() for uri in subscriber.uris)
        return tuple(dict.fromkeys((*self._listened, *older)))

    async def _notify(self, key: str, subscriber: _Subscriber, uri: str) -> None:
        """Tell one session; one that does not read is forgotten, so that the others are not kept waiting."""
        try:
            async with asyncio.timeout(limits.NOTIFY_TIMEOUT_S):
                await subscriber.session.send_resource_updated(uri)
        except TimeoutError:
            _log.info("a client does not read its notifications; it is told of no more changes")
            self._subscribers.pop(key, None)


def _session_key(ctx: Context) -> str:
    """Which session asks: over HTTP the transport's session id, on stdio there is one."""
    headers = getattr(ctx.request, "headers", None)
    return str(headers.get(_SESSION_HEADER, "")) if headers is not None else ""
