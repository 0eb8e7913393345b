"""llama-server's command line for a plan: only options that the engine named when it was probed.

Owns which option means what in which version, and the engine's environment. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.flags import needed, optional
from agentmesh.inference.logic.target import EngineAddress

# Threads of the server's HTTP side: each connection holds one, idle or not (cpp-httplib); they cost a stack each.
HTTP_THREADS: Final = 64
ALL_LAYERS: Final = "999"  # older builds take no "all"; the deepest models have 126
NO_DEVICE: Final = "none"
# Takes inputs that are longer than a batch, which `mean` does not.
DEFAULT_POOLING: Final = "last"

# What an engine may need of the environment: where things are, how text is encoded, and what drivers read. Not what its options could
# be given by (LLAMA_ARG_*, AIP_*), and no secrets of the user.
KEPT_VARIABLES: Final = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "TZ",
        "LANG",
        "LANGUAGE",
        "VIRTUAL_ENV",
        "XDG_RUNTIME_DIR",
        "XDG_CACHE_HOME",
    )
)
KEPT_PREFIXES: Final = (
    *(
        "LC_",
        "LD_",
        "DYLD_",
        "PYTHON",
        "OMP_",
        "GOMP_",
        "KMP_",
        "OPENBLAS_",
        "MKL_",
        "GGML_",
        "CUDA_",
        "NVIDIA_",
        "NCCL_",
    ),
    *(
        "HIP_",
        "ROCR_",
        "ROCM_",
        "ROCBLAS_",
        "HSA_",
        "GPU_",
        "VK_",
        "MESA_",
        "RADV_",
        "MTL_",
        "METAL_",
        "SYCL_",
        "ONEAPI_",
        "ZES_",
    ),
    "FAKE_ENGINE",  # of the tests' engine
)


@dataclass(frozen=True)
class ServerPlan:
    """What one engine is to serve.

    Attributes:
        model: its (first) file.
        model_id: what the API calls it.
        context_tokens: over all slots together; one request gets `context_tokens // slots`.
        slots: requests that run at once.
        device: what `--device` takes ("CUDA0", "CUDA0,CUDA1"); "none" for the CPU; None: as the engine decides.
        projector: the file with the vision part.
        embeddings: /v1/embeddings answers too (beside chat). Costs an output buffer of 512 x vocabulary x 4 bytes.
        extra: more options, as they are; they come last, so they win.
        pooling: of embeddings: "last" unless the model's file has its own; then None.
        is_owed: whether somebody else owes it a reply, and is watched for that; it then does nothing itself for as long as it takes.
    """

    model: Path
    model_id: str
    context_tokens: int
    slots: int
    device: str | None = None
    projector: Path | None = None
    embeddings: bool = False
    extra: tuple[str, ...] = ()
    pooling: str | None = DEFAULT_POOLING
    is_owed: Callable[[], bool] | None = field(default=None, compare=False)


def server_arguments(engine: Engine, plan: ServerPlan, address: EngineAddress) -> list[str]:
    """The options after the engine's command. The key of a port goes through `engine_environment`, not here.

    Raises:
        EngineTooOld: the engine lacks an option that the plan cannot do without; it is named.
    """
    flags = engine.flags
    words = [
        *needed(flags, ("--model", "-m"), str(plan.model.absolute())),
        *needed(flags, ("--alias", "-a"), plan.model_id),
        *needed(flags, ("--ctx-size", "-c"), str(plan.context_tokens)),
        *needed(flags, ("--parallel", "-np"), str(plan.slots)),
        *_listening(flags, address),
        *optional(flags, ("--no-ui", "--no-webui")),
        *optional(flags, ("--jinja",)),
        *optional(flags, ("--metrics",)),
        *optional(flags, ("--slots",)),
        *optional(flags, ("--offline",)),
        *optional(flags, ("--fit", "-fit"), "off"),  # the plan was made to fit; a silent change would make it wrong
        *optional(flags, ("--log-colors",), "off"),
        *optional(flags, ("--threads-http",), str(max(HTTP_THREADS, 2 * plan.slots))),
        *_device(engine, plan.device),
    ]
    if plan.projector is not None:
        words += needed(flags, ("--mmproj", "-mm"), str(plan.projector.absolute()))
    if plan.embeddings:
        words += needed(flags, ("--embeddings", "--embedding"))
        if plan.pooling is not None:
            words += needed(flags, ("--pooling",), plan.pooling)
    return [*words, *plan.extra]


def engine_environment(own: Mapping[str, str], address: EngineAddress) -> dict[str, str]:
    """What the engine gets of this process's environment, and its key: an environment is its user's alone, a command line everybody's."""
    kept = {name: value for name, value in own.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)}
    # An engine that aborts, as a split's does without its worker, would start a debugger first.
    kept["GGML_NO_BACKTRACE"] = "1"
    if address.api_key is not None:
        kept["LLAMA_API_KEY"] = address.api_key
    return kept


def _listening(flags: frozenset[str], address: EngineAddress) -> list[str]:
    if address.socket is not None:
        return needed(flags, ("--host",), address.socket)
    return [*needed(flags, ("--host",), "127.0.0.1"), *needed(flags, ("--port",), str(address.port))]


def _device(engine: Engine, device: str | None) -> list[str]:
    """Where the layers go. Without a word on it old builds take the CPU and new ones whatever fits at that moment."""
    if device == NO_DEVICE or (device is None and not engine.devices):
        return optional(engine.flags, ("--device", "-dev"), NO_DEVICE) if engine.devices else []
    chosen = [] if device is None else needed(engine.flags, ("--device", "-dev"), device)
    return [*chosen, *optional(engine.flags, ("--n-gpu-layers", "--gpu-layers", "-ngl"), ALL_LAYERS)]
