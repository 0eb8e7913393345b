"""llama-server's options for a draft model: only those that the engine named when it was probed.

Owns which option means what in which version. A draft stays on the host: by default it follows `--device`, and so would go to the
workers of a split, where its tensors have the names of the target's.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from agentmesh.inference.engine.arguments import ALL_LAYERS, NO_DEVICE
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.flags import needed, optional

# Since drafts are one of several ways to speculate, one that is only named by --model-draft is loaded and not used.
DRAFT_TYPE: Final = "draft-simple"
_needed = partial(needed, so="it cannot use a draft")


def draft_arguments(engine: Engine, draft: Path, max_tokens: int, *, device: str = NO_DEVICE) -> list[str]:
    """The options.

    Args:
        device: a local device ("CUDA0"), or "none" for the processor. Never a worker's.

    Raises:
        EngineTooOld: the engine has no drafts, or cannot keep one on the host.
    """
    flags = engine.flags
    words = [
        *_needed(flags, ("--spec-draft-model", "--model-draft", "-md"), str(draft.absolute())),
        *_needed(flags, ("--spec-draft-n-max", "--draft-max", "--draft-n", "--draft"), str(max_tokens)),
        *optional(flags, ("--spec-type",), DRAFT_TYPE),
    ]
    devices = ("--spec-draft-device", "--device-draft", "-devd")
    layers = ("--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft", "-ngld")
    if device == NO_DEVICE:
        return [*words, *_needed(flags, devices, NO_DEVICE), *optional(flags, layers, "0")]
    return [*words, *_needed(flags, devices, device), *optional(flags, layers, ALL_LAYERS)]
