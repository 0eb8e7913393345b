"""Errors between a client and its node, and how the node's JSON errors become members of the one tree again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from agentmesh.core import errors
from agentmesh.core.errors import AgentMeshError


class NodeLost(errors.NoNode):
    """The node ended before it answered."""


class NodeSilent(errors.NoNode):
    """The node did not answer in time."""


class NodeStopping(errors.NoNode):
    """The node is stopping."""


class ForeignSocket(errors.NoNode):
    """The node's socket belongs to another user; it is not used."""


_BY_STATUS: dict[int, type[AgentMeshError]] = {
    400: errors.InvalidInput,
    404: errors.NotFound,
    405: errors.InvalidInput,
    409: errors.Ambiguous,
    413: errors.InvalidInput,
    422: errors.InvalidInput,
    429: errors.QuotaExceeded,
    507: errors.StorageError,
}


def _tree(of: type[AgentMeshError]) -> Iterator[type[AgentMeshError]]:
    yield of
    for subclass in of.__subclasses__():
        yield from _tree(subclass)


def error_code(of: type[AgentMeshError]) -> str:
    """The code that instances of this class carry in JSON."""
    return AgentMeshError.code.__get__(of.__new__(of), of)


def error_from_response(status: int, body: object) -> AgentMeshError:
    """The error that the node reported: its own class where this process knows it, else the nearest by HTTP status.

    A thin client does not import the packages that define the more special classes; the status carries the exit code.
    """
    report: dict[str, Any] = {}
    if isinstance(body, dict):
        inner = cast("dict[str, Any]", body).get("error")
        report = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
    code, message = (
        str(report.get("code", "")),
        str(report.get("message", "")) or f"The node answered with status {status}.",
    )
    for known in _tree(AgentMeshError):
        if error_code(known) == code:
            error = known.__new__(known)
            AgentMeshError.__init__(error, message)
            return error
    return _BY_STATUS.get(status, AgentMeshError)(message)
