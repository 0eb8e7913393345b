"""The board's routes, on the node's socket and its console port: one FastAPI router over BlackboardService.

Owns shapes and status codes only. Who may call (Host, Origin, Bearer) is checked before, by the application that mounts it.
Answers are encoded by msgspec from the service's own shapes; the models here check what comes in and describe what goes out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmesh.blackboard.logic.limits import DEFAULT_PAGE, MAX_BODY_BYTES
from agentmesh.blackboard.ports import BoardEvent
from agentmesh.blackboard.service import BlackboardService
from agentmesh.core.errors import AgentMeshError, InvalidInput

PREFIX: Final = "/api/blackboard"
_SSE_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_encoder = msgspec.json.Encoder()


# ------------------------------------------------------------------ shapes, for checking and for OpenAPI


class PostIn(BaseModel):
    """A post to be made."""

    model_config = ConfigDict(populate_by_name=True, strict=True)

    text: str = Field(description="At most 4,096 bytes of UTF-8 once secrets are masked; 16 KiB before.")
    reply_to: str | None = Field(None, description="Id of the post that this answers, or its first characters.")
    topic: str | None = Field(None, description="`org/repo`; else taken from a bracket at the text's start.")
    author: str | None = Field(None, alias="from", description="Who posts; else the node's own name.")
    idempotency_key: str | None = Field(None, description="The same key never makes a second post.")


class PostOut(BaseModel):
    """A post. Times are ms UTC, ids full hex; `verified`: its node's signature was checked."""

    id: str
    kind: str
    topic: str | None
    branch: str | None
    text: str
    author: str
    node_id: str
    node_name: str | None
    created_at: int
    expires_at: int
    reply_to: str | None
    verified: bool


class RedactionOut(BaseModel):
    kind: str
    count: int


class PostedOut(BaseModel):
    """The new post's id, what was masked in it, and posts on the same claim, question or thread."""

    id: str
    redactions: list[RedactionOut]
    related: list[PostOut]


class PageOut(BaseModel):
    """Posts and the cursor of the next page, null at the end."""

    posts: list[PostOut]
    next_cursor: str | None


class PostsOut(BaseModel):
    posts: list[PostOut]


class TopicsOut(BaseModel):
    topics: list[str]


class AuthorsOut(BaseModel):
    authors: list[str]


class RetractedOut(BaseModel):
    id: str
    retracted: bool


class ErrorBody(BaseModel):
    code: str
    message: str
    retryable: bool


class ErrorOut(BaseModel):
    """What went wrong, in one sentence."""

    error: ErrorBody


_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorOut, "description": "The input cannot be used."},
    404: {"model": ErrorOut, "description": "There is no such post."},
    409: {"model": ErrorOut, "description": "The short id fits several posts."},
    413: {"model": ErrorOut, "description": "The body is larger than any post."},
    429: {"model": ErrorOut, "description": "Over quota; the message says when to try again."},
    503: {"model": ErrorOut, "description": "Too many clients wait."},
    507: {"model": ErrorOut, "description": "It could not be written; nothing was posted."},
}


class BodyTooLarge(InvalidInput):
    """The request's body is larger than any post."""

    http_status = 413


# ------------------------------------------------------------------ errors


class _Route(APIRoute):
    """A route whose errors are one sentence in the shape of the contract."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return error_response(InvalidInput(_sentence(error.errors()[0])))
            except AgentMeshError as error:
                return error_response(error)

        return guarded


def error_response(error: AgentMeshError) -> Response:
    """`{"error": {"code", "message", "retryable"}}` with the status of the error's class."""
    body = {"error": {"code": error.code, "message": error.message, "retryable": error.retryable}}
    return _json(body, error.http_status)


def _sentence(problem: Any) -> str:
    """One sentence of pydantic's first complaint; it names the argument and never repeats its value."""
    where = ".".join(str(part) for part in problem["loc"] if part not in ("query", "path", "body", "header"))
    message = str(problem["msg"]).rstrip(".")
    return f"{where or 'The request'}: {message[:1].lower()}{message[1:]}."


def _json(value: object, status: int = 200) -> Response:
    return Response(_encoder.encode(value), status, media_type="application/json")


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES:,} bytes.")
    return bytes(body)


# ------------------------------------------------------------------ routes

_Filter = Annotated[str | None, Query(max_length=1_024)]
_Cursor = Annotated[str | None, Query(max_length=4_096, description="`next_cursor` of the page before.")]
_Hours = Annotated[float | None, Query(description="Only posts of the last so many hours.")]


def blackboard_router(service: BlackboardService) -> APIRouter:
    """All routes under /api/blackboard."""
    router = APIRouter(prefix=PREFIX, route_class=_Route, tags=["blackboard"], responses=_ERRORS)
    _add_writing(router, service)
    _add_reading(router, service)
    _add_listing(router, service)
    return router


def _add_writing(router: APIRouter, service: BlackboardService) -> None:
    schema = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": PostIn.model_json_schema()}}}
    }

    @router.post("/post", response_model=PostedOut, openapi_extra=schema, summary="Post")
    async def post(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            wanted = PostIn.model_validate_json(await _read_body(request))
        except ValidationError as error:
            raise InvalidInput(_sentence(error.errors(include_url=False, include_input=False)[0])) from error
        posted = await service.post(
            wanted.text,
            author=wanted.author,
            topic=wanted.topic,
            reply_to=wanted.reply_to,
            idempotency_key=wanted.idempotency_key,
        )
        return _json(posted)

    @router.delete("/posts/{post_id}", response_model=RetractedOut, summary="Retract a post of this node")
    async def retract(post_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        gone = await service.retract(post_id)
        return _json({"id": gone.id, "retracted": True})


def _add_reading(router: APIRouter, service: BlackboardService) -> None:
    @router.get("/search", response_model=PageOut, summary="Search, best first")
    async def search(  # pyright: ignore[reportUnusedFunction]
        *,
        query: str = "",
        topic: _Filter = None,
        kind: _Filter = None,
        author: _Filter = None,
        since_hours: _Hours = None,
        thread: _Filter = None,
        unanswered: bool = False,
        limit: int = DEFAULT_PAGE,
        cursor: _Cursor = None,
    ) -> Response:
        page = await service.search(
            query,
            topic=topic,
            kind=kind,
            author=author,
            since_hours=since_hours,
            thread=thread,
            unanswered=unanswered,
            limit=limit,
            cursor=cursor,
        )
        return _json(page)

    @router.get(
        "/feed", response_model=PageOut, summary="Posts, newest first; optionally unread ones, or the next to come"
    )
    async def feed(  # pyright: ignore[reportUnusedFunction]
        *,
        since_hours: _Hours = None,
        topic: _Filter = None,
        kind: _Filter = None,
        author: _Filter = None,
        thread: _Filter = None,
        unread_only: bool = False,
        reader: Annotated[str | None, Query(max_length=1_024, description="Whose unread position it is.")] = None,
        unanswered: bool = False,
        wait_seconds: float = 0,
        limit: int = DEFAULT_PAGE,
        cursor: _Cursor = None,
    ) -> Response:
        page = await service.feed(
            topic=topic,
            kind=kind,
            author=author,
            since_hours=since_hours,
            thread=thread,
            unanswered=unanswered,
            unread_only=unread_only,
            reader=reader,
            wait_seconds=wait_seconds,
            limit=limit,
            cursor=cursor,
        )
        return _json(page)

    @router.get("/posts/{post_id}", response_model=PostOut, summary="One post, by its id or the first characters of it")
    async def get(post_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json(await service.get(post_id))


def _add_listing(router: APIRouter, service: BlackboardService) -> None:
    @router.get("/topics", response_model=TopicsOut, summary="Topics in use, last used first")
    async def topics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json({"topics": [topic.name for topic in await service.topics()]})

    @router.get("/authors", response_model=AuthorsOut, summary="Authors' names, last seen first")
    async def authors() -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json({"authors": [author.name for author in await service.authors()]})

    @router.get("/claims", response_model=PostsOut, summary="Claims in force")
    async def claims() -> Response:  # pyright: ignore[reportUnusedFunction]
        return _json({"posts": await service.claims()})

    @router.get(
        "/events", summary="Server-sent events: `post`, `retracted`, `dropped`", response_class=StreamingResponse
    )
    async def events(  # pyright: ignore[reportUnusedFunction]
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        stream = service.events(last_event_id)
        await anext(stream)  # subscribes: whoever is one too many is told so, before the answer begins
        return StreamingResponse(_sse(stream), media_type="text/event-stream", headers=_SSE_HEADERS)


async def _sse(events: AsyncGenerator[BoardEvent | None, None]) -> AsyncIterator[bytes]:
    """The events as text/event-stream (WHATWG HTML, section 9.2); a comment opens the stream and keeps it open."""
    yield b": agentmesh blackboard\n\n"
    async with aclosing(events):
        async for event in events:
            if event is None:
                yield b": still here\n\n"
            else:
                data = b"{}" if event.post is None else _encoder.encode(event.post)
                yield b"id: %s\nevent: %s\ndata: %s\n\n" % (event.id.encode(), event.event.encode(), data)
