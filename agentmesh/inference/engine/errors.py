"""What can go wrong with the inference engine itself: none found, too old, not started, not built."""

from __future__ import annotations

from agentmesh.core.errors import AgentMeshError, InvalidInput

TWO_WAYS = (
    "Build one with `agentmesh engine install`, or install the engine that comes as a Python package with "
    "`pip install 'agentmesh[embedded]'` (whole models on one machine only, no split)."
)


GET_EMBEDDED = "Install it with `pip install 'agentmesh[embedded]'`, or leave --llama-flavor out."


class EngineMissing(AgentMeshError):
    """There is no llama.cpp engine on this machine."""

    http_status = 503


class EngineTooOld(AgentMeshError):
    """The llama.cpp engine lacks an option that agentmesh needs."""

    http_status = 503


class EngineFailed(AgentMeshError):
    """The llama.cpp engine failed; its last log lines say why."""

    http_status = 503
    retryable = True


class BuildFailed(AgentMeshError):
    """llama.cpp could not be built."""


class UnknownFlavor(InvalidInput):
    """There is no such flavour of the engine; there are cpu, cuda, rocm, vulkan, metal, and embedded."""
