"""What can go wrong between a host and its workers, as the user reads it. Belongs to the one tree in core."""

from __future__ import annotations

from agentmesh.core.errors import PeerError, ProtocolError


class WorkerRefused(PeerError):
    """The worker does not take part."""

    http_status = 503


class WorkerBusy(WorkerRefused):
    """The worker's RPC server is in use."""

    retryable = True


class WorkerLost(PeerError):
    """The worker is gone."""

    http_status = 503
    retryable = True


class RpcServerGone(PeerError):
    """The RPC server on this machine ended or does not answer."""


class ClientMalformed(ProtocolError):
    """llama-server and this agentmesh do not speak the same RPC protocol."""
