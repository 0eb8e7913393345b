"""Resources, prompts and completions: the parts of MCP that people reach through their client's menus.

Reading is done through the same board client and fenced like tool results. Listing never asks the node, so that a client
gets its lists at once; what changes while a client watches is told by mcp_changes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from agentmesh.blackboard.board_client import BoardClient
from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.blackboard.logic import mcp_prompts, mcp_text, mcp_uris
from agentmesh.blackboard.logic.limits import DEFAULT_PAGE
from agentmesh.blackboard.ports import Page
from agentmesh.core.clock import Clock
from agentmesh.core.errors import AgentMeshError, Ambiguous, InvalidInput, NotFound

Context = ServerRequestContext[Any, Any]

MIME_TYPE: Final = "text/plain"
RESOURCE_NOT_FOUND_UNTIL_2025: Final = -32002  # MCP 2025-11-25, "Error handling" of resources; since 2026-07-28 -32602

FEED: Final = types.Resource(
    uri=mcp_uris.FEED_URI,
    name="feed",
    title="Blackboard feed",
    description="The newest posts of everybody on this mesh.",
    mime_type=MIME_TYPE,
)
TEMPLATES: Final = (
    types.ResourceTemplate(
        uri_template=mcp_uris.POST_TEMPLATE,
        name="post",
        title="A post and its replies",
        description="A post by its id (the first 8 characters suffice), with its thread.",
        mime_type=MIME_TYPE,
    ),
    types.ResourceTemplate(
        uri_template=mcp_uris.TOPIC_TEMPLATE,
        name="topic",
        title="Posts of a topic",
        description="The newest posts of a topic such as org/repo.",
        mime_type=MIME_TYPE,
    ),
)


class Resources:
    """Answers resources/list, resources/templates/list and resources/read."""

    def __init__(self, board: BoardClient, clock: Clock) -> None:
        self._board = board
        self._clock = clock

    async def list(self, _ctx: Context, _params: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[FEED])

    async def templates(
        self, _ctx: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=[*TEMPLATES])

    async def read(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """Raises MCPError: the address names nothing, or the node cannot be asked."""
        try:
            page = await self._page(params.uri)
        except (NotFound, Ambiguous, InvalidInput) as error:
            raise _not_found(ctx, params.uri, error.message) from error
        except AgentMeshError as error:
            raise MCPError(types.INTERNAL_ERROR, error.message) from error
        text = mcp_text.page_text(page, self._clock.now_ms(), secrets.token_hex(8), "There is no post here yet.")
        contents = types.TextResourceContents(uri=params.uri, mime_type=MIME_TYPE, text=text)
        return types.ReadResourceResult(contents=[contents])

    async def _page(self, uri: str) -> Page:
        address = mcp_uris.parse(uri)
        if address is None:
            raise NotFound(
                f"There is no resource '{uri[:120]}'; there are {mcp_uris.FEED_URI}, {mcp_uris.POST_TEMPLATE} and "
                f"{mcp_uris.TOPIC_TEMPLATE}."
            )
        if address.kind == "feed":
            return await self._board.feed({"limit": DEFAULT_PAGE})
        if address.kind == "topic":
            return await self._board.feed({"topic": address.name, "limit": DEFAULT_PAGE})
        post = await self._board.get(address.name)
        thread = await self._board.feed({"thread": post.id, "limit": DEFAULT_PAGE})
        replies = tuple(reply for reply in thread.posts if reply.id != post.id)
        return Page(posts=(*replies, post), next_cursor=thread.next_cursor)


def _not_found(ctx: Context, uri: str, message: str) -> MCPError:
    """The error for an address that names nothing, with the code of the client's protocol era."""
    modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    code = types.INVALID_PARAMS if modern else RESOURCE_NOT_FOUND_UNTIL_2025
    return MCPError(code, message, {"uri": uri})


class Prompts:
    """Answers prompts/list and prompts/get."""

    async def list(self, _ctx: Context, _params: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=[_prompt(prompt) for prompt in mcp_prompts.PROMPTS])

    async def get(self, _ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        """Raises MCPError: there is no such prompt, or it has no such argument."""
        try:
            prompt = mcp_prompts.find(params.name)
            text = prompt.render(params.arguments or {})
        except AgentMeshError as error:
            raise MCPError(types.INVALID_PARAMS, error.message) from error
        message = types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))
        return types.GetPromptResult(description=prompt.description, messages=[message])


def _prompt(prompt: mcp_prompts.BoardPrompt) -> types.Prompt:
    arguments = [
        types.PromptArgument(name=name, description=description, required=False)
        for name, description in prompt.arguments.items()
    ]
    return types.Prompt(name=prompt.name, title=prompt.title, description=prompt.description, arguments=arguments)


class Completions:
    """Answers completion/complete for topics and authors; anything else completes to nothing."""

    def __init__(self, board: BoardClient) -> None:
        self._sources: Mapping[str, Callable[[], Awaitable[list[str]]]] = {
            "topic": board.topics,
            "author": board.authors,
        }

    async def complete(self, _ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        source = self._sources.get(params.argument.name)
        if source is None or not _takes(params.ref, params.argument.name):
            return types.CompleteResult(completion=types.Completion(values=[], total=0, has_more=False))
        try:
            names = await source()
        except AgentMeshError as error:
            raise MCPError(types.INTERNAL_ERROR, error.message) from error
        typed = params.argument.value.casefold()
        # What begins with the typed text first, then what merely holds it; each in the node's order, most used first.
        begins = [name for name in names if name.casefold().startswith(typed)]
        holds = [name for name in names if typed in name.casefold() and name not in begins]
        found = [mcp_text.visible(name) for name in (*begins, *holds)]
        values = found[: limits.MAX_COMPLETIONS]
        completion = types.Completion(values=values, total=len(found), has_more=len(found) > len(values))
        return types.CompleteResult(completion=completion)


def _takes(ref: types.PromptReference | types.ResourceTemplateReference, argument: str) -> bool:
    if isinstance(ref, types.PromptReference):
        return any(prompt.name == ref.name and argument in prompt.arguments for prompt in mcp_prompts.PROMPTS)
    return f"{{{argument}}}" in ref.uri and any(template.uri_template == ref.uri for template in TEMPLATES)
