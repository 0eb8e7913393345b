"""The management API: what the command line, MCP and the console call. One app for the Unix socket and for loopback TCP.

Owns the routes of node and mesh, the form of errors, and the event stream; takes the blackboard's routes as they are. What
the routes do is behind `ManagedNode`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, Protocol, cast

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

import agentmesh
from agentmesh.console.docs_page import render_docs
from agentmesh.console.models import Done, Invite, InviteRequest, JoinRequest, NodeProcess, RevokeRequest, Status
from agentmesh.core.errors import AgentMeshError

_log = logging.getLogger(__name__)

STATUS_EVERY_S: Final = 2.0  # how soon the event stream shows a change
KEEP_ALIVE_S: Final = 15.0  # a comment on a quiet stream, so that both sides notice when the other is gone


class ManagedNode(Protocol):
    """A running node as its management API sees it."""

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the node begins to stop: event streams end then."""
        ...

    def process(self) -> NodeProcess: ...

    async def status(self) -> Status: ...

    def stop(self) -> Done: ...

    def hand_over(self) -> Done:
        """End in favour of the caller's node. Raises: NodeRunning: this node was started by hand."""
        ...

    async def leave(self) -> Done: ...

    async def invite(self, expires_ms: int | None, uses: int | None) -> Invite: ...

    async def revoke(self, target: str) -> Done: ...

    async def join(self, tokens: list[str]) -> Done: ...


def build_app(node: ManagedNode, *routers: APIRouter) -> FastAPI:
    """The whole API of a node, without any guard."""
    app = FastAPI(
        title="agentmesh",
        version=agentmesh.__version__,
        summary="The management API of one node. Times are integer milliseconds UTC.",
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(app)
    app.include_router(_general_routes(node, app))
    app.include_router(_node_routes(node))
    app.include_router(_mesh_routes(node))
    for router in routers:
        app.include_router(router)
    return app


def _general_routes(node: ManagedNode, app: FastAPI) -> APIRouter:
    router = APIRouter()

    async def healthz() -> dict[str, str]:
        """Answers as long as the node runs; needs no token."""
        return {"status": "ok"}

    async def docs() -> HTMLResponse:
        return HTMLResponse(render_docs(app.openapi()))

    async def status() -> Status:
        """The node, its mesh and its peers."""
        return await node.status()

    async def events() -> StreamingResponse:
        """Server-sent events: `status` with the node's status, at once and whenever it changes."""
        return StreamingResponse(
            _status_events(node), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    router.add_api_route("/healthz", healthz, tags=["node"])
    router.add_api_route("/docs", docs, include_in_schema=False)
    router.add_api_route("/api/status", status, tags=["node"])
    router.add_api_route("/api/events", events, tags=["node"])
    return router


def _node_routes(node: ManagedNode) -> APIRouter:
    router = APIRouter(prefix="/api/node", tags=["node"])

    async def process() -> NodeProcess:
        """The node's process."""
        return node.process()

    async def stop() -> Done:
        """End the node; its mesh and board stay for the next start."""
        return node.stop()

    async def handover() -> Done:
        """End a node that runs in the background, so that the caller's may take its place."""
        return node.hand_over()

    async def leave() -> Done:
        """Forget the membership of the mesh and end the node."""
        return await node.leave()

    router.add_api_route("", process)
    router.add_api_route("/stop", stop, methods=["POST"])
    router.add_api_route("/handover", handover, methods=["POST"])
    router.add_api_route("/leave", leave, methods=["POST"])
    return router


def _mesh_routes(node: ManagedNode) -> APIRouter:
    router = APIRouter(prefix="/api/mesh", tags=["mesh"])

    async def invite(request: InviteRequest) -> Invite:
        """Make an invite token."""
        return await node.invite(request.expires_ms, request.uses)

    async def revoke(request: RevokeRequest) -> Done:
        """Take a node's membership or an invite back."""
        return await node.revoke(request.target)

    async def join(request: JoinRequest) -> Done:
        """Join the mesh of these tokens, leaving the present one."""
        return await node.join(request.tokens)

    router.add_api_route("/invite", invite, methods=["POST"])
    router.add_api_route("/revoke", revoke, methods=["POST"])
    router.add_api_route("/join", join, methods=["POST"])
    return router


async def _status_events(node: ManagedNode) -> AsyncIterator[str]:
    last, quiet_s = "", 0.0
    while not node.stopping.is_set():
        now = (await node.status()).model_dump_json()
        if now != last:
            last, quiet_s = now, 0.0
            yield f"event: status\ndata: {now}\n\n"
        elif quiet_s >= KEEP_ALIVE_S:
            quiet_s = 0.0
            yield ": still here\n\n"
        try:
            async with asyncio.timeout(STATUS_EVERY_S):
                await node.stopping.wait()
        except TimeoutError:
            quiet_s += STATUS_EVERY_S


# ------------------------------------------------------------------ errors


def error_response(status: int, code: str, message: str, *, retryable: bool = False) -> JSONResponse:
    """An error in the form that every client reads."""
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


def _add_errors(app: FastAPI) -> None:
    async def ours(_request: Request, error: Exception) -> JSONResponse:
        error = cast(AgentMeshError, error)
        return error_response(error.http_status, error.code, error.message, retryable=error.retryable)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        error = cast(RequestValidationError, error)
        return error_response(400, "invalid_input", _validation_sentence(error))

    async def http(_request: Request, error: Exception) -> JSONResponse:
        error = cast(HTTPException, error)
        code = {404: "not_found", 405: "invalid_input"}.get(error.status_code, "agent_mesh_error")
        sentence = "There is no such route here." if error.status_code == 404 else f"{error.detail}."
        return error_response(error.status_code, code, sentence)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(500, "agent_mesh_error", "The node failed at this request; its log says more.")

    app.add_exception_handler(AgentMeshError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _validation_sentence(error: RequestValidationError) -> str:
    """Each mistake as `where: what`, of at most three: a client that sends nonsense need not read all of it."""
    found: list[str] = []
    for mistake in error.errors()[:3]:
        where = ".".join(
            str(part) for part in mistake["loc"] if isinstance(part, str) and part not in ("body", "query", "path")
        )
        found.append(f"{where or 'request'}: {mistake['msg']}")
    return "; ".join(found) + "."
