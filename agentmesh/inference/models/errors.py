"""What can go wrong with models, as the user reads it. Belongs to the one tree in core."""

from __future__ import annotations

from agentmesh.core.errors import AgentMeshError, InvalidInput, NotFound, StorageError


class ModelFileUnusable(AgentMeshError):
    """The model file cannot be used."""

    http_status = 422


class UnknownModel(NotFound):
    """No model has this name."""


class HubError(AgentMeshError):
    """The model hub did not answer as it should."""

    http_status = 502


class HubUnavailable(HubError):
    """The model hub could not be reached."""

    http_status = 503
    retryable = True

    def __init__(self, message: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HubBusy(HubUnavailable):
    """The model hub asks to come back later."""


class HubRefused(HubError):
    """The model hub does not give this model out without a token; set HF_TOKEN."""

    http_status = 403


class HubNotFound(NotFound):
    """The model hub has no such model."""


class NoPeerHas(NotFound):
    """No member of the mesh gives this file."""


class WrongContent(HubError):
    """What was downloaded is not what the hub promised; it was thrown away."""

    retryable = True


class NoSpace(StorageError):
    """There is not enough space on the disk."""


class UnsafeName(InvalidInput):
    """The name of the file leads out of its folder."""
