"""The one tree of errors.

Each class's docstring is the sentence that a user reads when nothing better is given; the attributes say how each face
reports it: `exit_code` for the command line, `http_status` for the management API, `retryable` for agents and clients.
Lower-layer errors (ssl, sqlite3, msgspec, OSError) are translated into this tree at one boundary, where they occur.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_NODE = 3


class AgentMeshError(Exception):
    """Something in agentmesh failed."""

    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip().splitlines()[0]
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The class's name in snake case: the stable identifier in JSON answers."""
        name = type(self).__name__
        return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


# ------------------------------------------------------------------ what the user gave us


class InvalidInput(AgentMeshError):
    """The input cannot be used."""

    exit_code = EXIT_USAGE
    http_status = 400


class NotFound(AgentMeshError):
    """There is no such thing here."""

    exit_code = EXIT_FAILED
    http_status = 404


class Ambiguous(InvalidInput):
    """The short id fits more than one; give more characters."""

    http_status = 409


class TokenError(InvalidInput):
    """The invite token cannot be used."""


class QuotaExceeded(AgentMeshError):
    """Too many posts in too short a time; wait and try again."""

    http_status = 429
    retryable = True


# ------------------------------------------------------------------ this machine


class HomeError(AgentMeshError):
    """The agentmesh home directory cannot be used."""


class IdentityKeyError(HomeError):
    """The identity key cannot be used."""


class StorageError(AgentMeshError):
    """The data could not be written to disk; nothing was acknowledged."""

    http_status = 507
    retryable = True


class PortInUse(AgentMeshError):
    """The port is in use by another program."""


class NodeRunning(AgentMeshError):
    """Another node already runs in this home."""


class NoNode(AgentMeshError):
    """No agentmesh node could be reached or started."""

    exit_code = EXIT_NO_NODE
    http_status = 503
    retryable = True


# ------------------------------------------------------------------ peers


class PeerError(AgentMeshError):
    """A peer did something that the protocol does not allow."""


class ProtocolError(PeerError):
    """A peer sent bytes that the protocol does not allow."""


class NotAdmitted(PeerError):
    """The peer refused to admit this node to the mesh."""

    http_status = 403


class Unreachable(PeerError):
    """The peer did not answer."""

    http_status = 503
    retryable = True


class PortClosed(Unreachable):
    """Nothing listens at the peer's port."""


class StreamClosed(PeerError):
    """The stream was closed by the other side or because its connection ended."""

    retryable = True
