"""llama-server's options for a model whose layers are spread over workers: only those that the engine named when it was probed.

Owns which option means what in which version, their order, and how llama.cpp numbers the workers' devices. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from agentmesh.inference.engine.arguments import NO_DEVICE
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineTooOld
from agentmesh.inference.engine.flags import needed
from agentmesh.inference.logic.split_offer import MACHINE
from agentmesh.inference.logic.split_values import Place, Split

# The output and, where it is the same tensor, the token embeddings: beside a worker, logits would come back at each token.
OUTPUT_ON_CPU: Final = r"^(output|token_embd)\.weight$=CPU"
KV_TYPE: Final = "f16"  # the plan counted two bytes an element; unequal types on K and V crashed
_needed = partial(needed, so="it cannot share a model with other nodes")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where llama-server reaches one worker: a port of 127.0.0.1, and the worker's devices in its RPC server's order ("": its
    machine's memory)."""

    worker: bytes
    port: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitWords:
    """For a ServerPlan: `ServerPlan(..., device=words.device, extra=words.extra)`.

    Attributes:
        devices: as llama-server calls them, in the plan's order; for status.
        extra: every option, `--device` among them.
        device: for ServerPlan.device, always None: its `--device` comes before `extra`, and knows no worker before `--rpc` has named it.
    """

    devices: tuple[str, ...]
    extra: tuple[str, ...]
    device: None = None


def check_engine(engine: Engine, plan: Split) -> None:
    """Whether this engine can host the plan at all, before any worker is asked.

    Raises:
        EngineTooOld: it cannot; the sentence says what to do.
    """
    workers = dict.fromkeys(share.place.node for share in plan.shares if not share.place.is_host)
    split_words(engine, plan, [Endpoint(worker, 1, devices_of(plan, worker)) for worker in workers])


def devices_of(plan: Split, worker: bytes) -> tuple[str, ...]:
    """The devices that the plan uses there; "" is the machine's memory."""
    return tuple(_name(share.place) for share in plan.shares if share.place.node == worker)


def split_words(engine: Engine, plan: Split, endpoints: Sequence[Endpoint]) -> SplitWords:
    """The options.

    Args:
        endpoints: one for each worker of the plan. Their order makes the numbers: RPC0, RPC1, … over all devices of all of them.

    Raises:
        EngineTooOld: the engine is an embedded one, or lacks an option that a split cannot do without.
        ValueError: a device of the plan is at none of the endpoints.
    """
    if engine.is_embedded:
        raise EngineTooOld(
            "The embedded engine cannot share a model with other nodes. Build one that can with: agentmesh engine install"
        )
    numbers: dict[tuple[bytes, str], str] = {}
    for endpoint in endpoints:
        for device in endpoint.devices:
            numbers[endpoint.worker, device] = f"RPC{len(numbers)}"
    devices = [_device(share.place, numbers) for share in plan.shares if not _is_not_offloaded(share.place)]
    flags = engine.flags
    words = [
        # Before --rpc: it asks every device that is known by then for its buffers.
        *(_needed(flags, ("--override-tensor", "-ot"), OUTPUT_ON_CPU) if plan.output_on_cpu else []),
        *_needed(flags, ("--rpc",), ",".join(f"127.0.0.1:{endpoint.port}" for endpoint in endpoints)),
        *_needed(flags, ("--device", "-dev"), ",".join(devices)),
        *_needed(flags, ("--split-mode", "-sm"), "layer"),
        *_needed(flags, ("--tensor-split", "-ts"), ",".join(map(str, plan.tensor_split))),
        *_needed(flags, ("--n-gpu-layers", "--gpu-layers", "-ngl"), str(plan.gpu_layers)),
        *_without_mapping(flags),
        *_equal_kv_types(flags),
        *_projector_on_host(flags),
    ]
    return SplitWords(tuple(devices), tuple(words))


def _name(place: Place) -> str:
    return MACHINE if place.device is None else place.device


def _is_not_offloaded(place: Place) -> bool:
    """A host's machine memory is no device: its layers are those beyond --n-gpu-layers."""
    return place.is_host and place.device is None


def _device(place: Place, numbers: dict[tuple[bytes, str], str]) -> str:
    if place.is_host and place.device is not None:
        return place.device
    number = numbers.get((place.node, _name(place)))
    if number is None:
        raise ValueError(f"the device '{_name(place)}' of {place.node.hex()[:8]} is at no endpoint")
    return number


def _without_mapping(flags: frozenset[str]) -> list[str]:
    """Mapped, the whole file would count as this machine's memory."""
    if "--load-mode" in flags or "-lm" in flags:
        return _needed(flags, ("--load-mode", "-lm"), "none")
    return _needed(flags, ("--no-mmap",))


def _equal_kv_types(flags: frozenset[str]) -> list[str]:
    keys, values = ("--cache-type-k", "-ctk"), ("--cache-type-v", "-ctv")
    if not flags & set(keys) or not flags & set(values):
        return []
    return [*_needed(flags, keys, KV_TYPE), *_needed(flags, values, KV_TYPE)]


def _projector_on_host(flags: frozenset[str]) -> list[str]:
    """It follows --device otherwise, and the first one is a worker's."""
    if not flags & {"--mmproj", "-mm"}:
        return []
    if flags & {"--mmproj-device", "-mmdev"}:
        return _needed(flags, ("--mmproj-device", "-mmdev"), NO_DEVICE)
    return _needed(flags, ("--no-mmproj-offload",))
