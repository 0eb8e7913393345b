"""The board as a thin client sees it: typed calls to the node's `/api/blackboard`, which survive a restart of the node.

Owns the routes, the shapes of the answers, and what happens when the node is not there: it is found or started once, and
the call is made again. That is safe because reading changes nothing and every post carries an idempotency key. Knows
nothing of MCP, and of the node only its HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.blackboard.ports import Page, Posted, PostView
from agentmesh.control.client import AsyncNodeClient
from agentmesh.control.errors import NodeSilent
from agentmesh.core.errors import InvalidInput, NoNode
from agentmesh.core.paths import Home

_log = logging.getLogger(__name__)
_ROOT: Final = "/api/blackboard"

Params = Mapping[str, str | int | float | bool | None]
Shape = TypeVar("Shape")


@dataclass(frozen=True)
class BoardEvent:
    """Something changed on the board: a post arrived, one was retracted, or it is not known what."""

    kind: str  # "post", "retracted", or "gap"
    post: PostView | None  # None: events may have been missed, so anything may have changed


class BoardClient(Protocol):
    """What the faces need of a board. Every call raises members of the AgentMeshError tree."""

    async def warm(self) -> None: ...
    async def post(self, body: Params) -> Posted: ...
    async def search(self, params: Params) -> Page: ...
    async def feed(self, params: Params, wait_s: float = 0.0) -> Page: ...
    async def get(self, post_id: str) -> PostView: ...
    async def retract(self, post_id: str) -> None: ...
    async def topics(self) -> list[str]: ...
    async def authors(self) -> list[str]: ...
    def events(self) -> AsyncIterator[BoardEvent]: ...


class NodeBoardClient:
    """The board of one home's node. `ensure` blocks until a node answers there, starting one if need be."""

    def __init__(self, home: Home, ensure: Callable[[], object]) -> None:
        self._node = AsyncNodeClient(home)
        self._ensure = ensure
        self._ensuring = asyncio.Lock()

    async def warm(self) -> None:
        """Have a node running that is not older than this client; meeting a client, it warms its scrubber.

        Raises:
            NoNode: none runs and none could be started; the message says why.
        """
        await self._ensure_node()

    async def post(self, body: Params) -> Posted:
        """Share `body["text"]`. The body must carry an idempotency key: the call may be made twice.

        Raises:
            InvalidInput: the node refuses the text or an argument.
            QuotaExceeded, StorageError, NoNode: nothing was posted; try again later.
        """
        sent = {name: value for name, value in body.items() if value is not None}
        return _shape(await self._request("POST", f"{_ROOT}/post", json=sent), Posted)

    async def search(self, params: Params) -> Page:
        return _shape(await self._request("GET", f"{_ROOT}/search", params=params), Page)

    async def feed(self, params: Params, wait_s: float = 0.0) -> Page:
        """Posts, newest first; with `wait_s` the node answers when something new comes or the time is over."""
        if wait_s > 0:
            params = {**params, "wait_seconds": wait_s}
        answer = await self._request("GET", f"{_ROOT}/feed", params=params, patience_s=wait_s)
        return _shape(answer, Page)

    async def get(self, post_id: str) -> PostView:
        """One post by its id or an unambiguous beginning of it. Raises NotFound, Ambiguous."""
        return _shape(await self._request("GET", _post_path(post_id)), PostView)

    async def retract(self, post_id: str) -> None:
        """Take back a post of this node. Raises NotFound, Ambiguous, InvalidInput."""
        await self._request("DELETE", _post_path(post_id))

    async def topics(self) -> list[str]:
        return _names(await self._request("GET", f"{_ROOT}/topics"), "topics")

    async def authors(self) -> list[str]:
        return _names(await self._request("GET", f"{_ROOT}/authors"), "authors")

    async def events(self) -> AsyncGenerator[BoardEvent, None]:
        """What changes on the board from now on, for ever: a broken stream is opened again, at growing intervals."""
        delay_s = limits.RESUBSCRIBE_MIN_S
        while True:
            try:
                async with aclosing(self._node.stream_events(f"{_ROOT}/events")) as stream:
                    async for event in stream:
                        delay_s = limits.RESUBSCRIBE_MIN_S
                        if event.event in ("post", "retracted"):
                            yield BoardEvent(event.event, _shape(msgspec.json.decode(event.data), PostView))
            except (NoNode, msgspec.DecodeError) as error:
                _log.info("the board's event stream broke (%s); opening it again in %s s", error, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, limits.RESUBSCRIBE_MAX_S)
            yield BoardEvent("gap", None)

    async def _request(
        self, method: str, path: str, *, params: Params | None = None, json: object = None, patience_s: float = 0.0
    ) -> dict[str, Any]:
        timeout_s = limits.REQUEST_TIMEOUT_S + patience_s
        try:
            return await self._node.request(method, path, params=params, json=json, timeout_s=timeout_s)
        except NodeSilent:
            raise  # it runs and is busy: starting another would not help
        except NoNode as error:
            _log.info("no answer from the node (%s); finding or starting one", error)
            await self._ensure_node()
        return await self._node.request(method, path, params=params, json=json, timeout_s=timeout_s)

    async def _ensure_node(self) -> None:
        """Find or start the node; calls that come meanwhile wait for the same attempt."""
        async with self._ensuring:
            try:
                async with asyncio.timeout(limits.ATTACH_TIMEOUT_S):
                    await _in_daemon_thread(self._ensure)
            except TimeoutError as error:
                raise NoNode("No node could be reached or started in time; see: agentmesh status") from error


async def _in_daemon_thread(function: Callable[[], object]) -> None:
    """Run a blocking function beside the loop, in a thread that never keeps a process from ending.

    `asyncio.to_thread` would: its executor is joined at the end, so a client that closes while a node is being started
    would leave this process waiting.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as failure:  # noqa: BLE001 - handed to the awaiting task, whatever it is
            error = failure
        try:
            loop.call_soon_threadsafe(settle, error)
        except RuntimeError:
            _log.debug("the loop ended before the node was ready")

    threading.Thread(target=run, name="ensure-node", daemon=True).start()
    await done


def _post_path(post_id: str) -> str:
    if not post_id.strip():
        raise InvalidInput("The post's id is empty; give at least its first 8 characters.")
    return f"{_ROOT}/posts/{quote(post_id, safe='')}"


def _shape(value: object, shape: type[Shape]) -> Shape:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise NodeMismatch(f"The node's answer is not understood ({error}); restart it: agentmesh stop.") from error


def _names(answer: Mapping[str, object], field: str) -> list[str]:
    return _shape(answer.get(field, []), list[str])


class NodeMismatch(NoNode):
    """The node runs another version of agentmesh; restart it with: agentmesh stop."""
