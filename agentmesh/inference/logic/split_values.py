"""What a plan for a model bigger than one machine is made from, and what comes out of it: values only.

Those that are published (msgspec) come from other nodes: `usable_facts` bounds them. docs/split-plan.md says what each means.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from agentmesh.inference.logic.fit import Fit
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.split_limits import (
    MAX_DEVICES_OF_A_NODE,
    MAX_PUBLISHED_FILES,
    MAX_PUBLISHED_RTTS,
    MAX_TERM,
)

NO_RPC_VERSION = (0, 0, 0)
_MAX_BYTES = 1 << 50
_MAX_NAME_CHARS = 64
_SHORT_ID_CHARS = 8


def id_text(node: bytes) -> str:
    """A node's id as users read and type it (mesh/identity.py: encode_id, which reads files too and so is not for pure code)."""
    return base64.b32encode(node).decode().rstrip("=").lower()


def short_id_text(node: bytes) -> str:
    """The beginning of its id."""
    return id_text(node)[:_SHORT_ID_CHARS]


class Way(StrEnum):
    """How a model is spread, when the user says (`--split=…`)."""

    ANY = "any"
    LAYERS = "layers"
    EXPERTS = "experts"


class DeviceFacts(msgspec.Struct, frozen=True, array_like=True):
    """An accelerator, as the engine lists it. `bytes_per_s`: of its memory, 0 if unknown."""

    name: str
    free_bytes: int
    total_bytes: int
    bytes_per_s: int = 0


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Its author hosts the model, or is about to. `running`: an engine of it may exist."""

    term: int
    plan_digest: str
    running: bool


class NodeFacts(msgspec.Struct, frozen=True, array_like=True):
    """What one node says of itself.

    Attributes:
        devices: its accelerators; none: the machine's memory is used.
        machine_free_bytes, machine_total_bytes: of the machine's memory, for models.
        rtt_ms: (peer, round trip) pairs as it measured them.
        engine_commit: "" if it has no engine.
        rpc_version: of its RPC server; zeros if unknown.
        files: SHA-256 of the model files that it holds.
        lends_to: node ids that may use its RPC server (`--rpc-peers`); `lends_to_all` for everybody.
        takes_part: it wants the model, or lends memory for splits. Else it neither hosts, works nor elects.
        machine_bytes_per_s: speed of the machine's memory, 0 if unknown.
        claim: what it hosts of this model.
        seen_term: the highest term that it served as a worker, so that a host which never met it begins above.
        may_host: it wants the model, and so has its files. Else it lends memory, and is a worker only.
    """

    node: bytes
    name: str = ""
    devices: tuple[DeviceFacts, ...] = ()
    machine_free_bytes: int = 0
    machine_total_bytes: int = 0
    rtt_ms: tuple[tuple[bytes, float], ...] = ()
    engine_commit: str = ""
    rpc_version: tuple[int, int, int] = NO_RPC_VERSION
    has_rpc: bool = False
    files: tuple[str, ...] = ()
    lends_to: tuple[bytes, ...] = ()
    lends_to_all: bool = False
    is_client: bool = False
    takes_part: bool = True
    machine_bytes_per_s: int = 0
    claim: Claim | None = None
    seen_term: int = 0
    may_host: bool = True

    @property
    def free_bytes(self) -> int:
        """What models may use: of the accelerators if there are any, else of the machine."""
        return sum(d.free_bytes for d in self.devices) if self.devices else self.machine_free_bytes

    @property
    def shown(self) -> str:
        """How sentences call it."""
        return self.name or short_id_text(self.node)

    def lends(self, host: bytes) -> bool:
        return self.lends_to_all or host in self.lends_to

    def rtt_to(self, peer: bytes) -> float | None:
        return next((rtt for node, rtt in self.rtt_ms if node == peer), None)


def usable_facts(facts: NodeFacts) -> NodeFacts | None:
    """What a peer said, within bounds; None if it cannot be true."""
    sizes = [facts.machine_free_bytes, facts.machine_total_bytes]
    for device in facts.devices:
        sizes += [device.free_bytes, device.total_bytes]
    if not all(0 <= count < _MAX_BYTES for count in sizes) or len(facts.devices) > MAX_DEVICES_OF_A_NODE:
        return None
    rtts = [(peer, rtt) for peer, rtt in facts.rtt_ms[:MAX_PUBLISHED_RTTS] if math.isfinite(rtt) and rtt >= 0]
    claim = facts.claim
    return msgspec.structs.replace(
        facts,
        name=facts.name[:_MAX_NAME_CHARS] if facts.name.isprintable() else "",
        rtt_ms=tuple(rtts),
        files=facts.files[:MAX_PUBLISHED_FILES],
        lends_to=facts.lends_to[:MAX_PUBLISHED_RTTS],
        claim=claim if claim is not None and 0 < claim.term <= MAX_TERM else None,
    )


class ModelParts(msgspec.Struct, frozen=True, array_like=True):
    """Weights by where llama.cpp puts them, in bytes.

    Attributes:
        input_bytes: always in the host's memory (token embeddings).
        block_bytes: of each layer.
        output_bytes: with the last device, or in the host's memory. Tied to the input: the same bytes once more on a device.
        everywhere_bytes: a copy for each device (rope factors).
        output_is_input: tied, so that it costs nothing beside the input.
    """

    input_bytes: int
    block_bytes: tuple[int, ...]
    output_bytes: int
    everywhere_bytes: int = 0
    output_is_input: bool = False


class PlanModel(msgspec.Struct, frozen=True):
    """A model as plans see it. `files`: SHA-256 of its parts, the first part's first; none while unknown."""

    id: str
    facts: ModelFacts
    parts: ModelParts
    files: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the user asked for; defaults: what fits. docs/split-plan.md has the table of flags. `host_extra_bytes`: of a draft and a
    projector beside the host's part; `alone_extra_bytes`: beside the whole model on one node, where a draft that nobody named gives way."""

    way: str = Way.ANY
    tensor_split: tuple[float, ...] = ()
    context_tokens: int | None = None
    slots: int | None = None
    host: bytes = b""
    min_peers: int = 0
    min_experts: int = 0
    host_extra_bytes: int = 0
    alone_extra_bytes: int = 0


class ExclusionCode(StrEnum):
    """Why a node is not in a split."""

    CLIENT = "client"
    NO_PART = "no_part"
    NO_RPC = "no_rpc"
    OTHER_ENGINE = "other_engine"
    NOT_LENT = "not_lent"
    RTT_UNKNOWN = "rtt_unknown"
    TOO_FAR = "too_far"
    LENDS_ONLY = "lends_only"


@dataclass(frozen=True, slots=True)
class Excluded:
    """A node that cannot take part, and a sentence that says what to do about it."""

    node: bytes
    code: ExclusionCode
    sentence: str


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere layers can lie: one device of one node, or its machine's memory. `limit_bytes`: free, less the headroom."""

    node: bytes
    device: str | None  # None: the machine's memory
    limit_bytes: int
    is_host: bool


@dataclass(frozen=True, slots=True)
class Share:
    """What one place gets: `layers` from `first`, and what that takes there."""

    place: Place
    first: int
    layers: int
    need_bytes: int


@dataclass(frozen=True, slots=True)
class Common:
    """What every answer has."""

    reasons: tuple[str, ...] = ()
    excluded: tuple[Excluded, ...] = ()
    to_measure: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Solo:
    """One node holds the whole model."""

    node: bytes
    fit: Fit
    common: Common = field(default_factory=Common)

    @property
    def host(self) -> bytes:
        return self.node


@dataclass(frozen=True, slots=True)
class Split:
    """Pipeline split.

    Attributes:
        workers: in plan order (round trip, memory, id).
        shares: in the order of llama.cpp's devices, a host without accelerators first (its layers are those that are not
            offloaded).
        tensor_split: whole layers for each device of `shares` that is one; the output counts as the last one's.
        gpu_layers: `--n-gpu-layers`; the output counts as one.
        output_on_cpu: keep the output in the host's memory, by `--override-tensor`.
        host_memory_bytes: what the host's machine memory must give beside its share: token embeddings, the program.
        lacking: members of the split that do not hold the file.
    """

    host: bytes
    workers: tuple[bytes, ...]
    shares: tuple[Share, ...]
    tensor_split: tuple[int, ...]
    gpu_layers: int
    output_on_cpu: bool
    context_tokens: int
    slots: int
    host_memory_bytes: int
    lacking: tuple[bytes, ...] = ()
    common: Common = field(default_factory=Common)

    @property
    def nodes(self) -> tuple[bytes, ...]:
        return (self.host, *self.workers)


@dataclass(frozen=True, slots=True)
class ShardRoom:
    """How many experts of each layer a node can hold."""

    node: bytes
    experts: int
    need_bytes: int


@dataclass(frozen=True, slots=True)
class Shards:
    """Expert shards, in the order of node ids."""

    nodes: tuple[ShardRoom, ...]
    expert_count: int
    context_tokens: int
    slots: int
    common: Common = field(default_factory=Common)


class WaitCode(StrEnum):
    """What is missing."""

    MEMORY = "memory"
    NODES = "nodes"
    MIN_PEERS = "min_peers"
    HOST_NODE = "host_node"
    TENSOR_SPLIT = "tensor_split"
    NO_EXPERTS = "no_experts"
    MEASURING = "measuring"


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be placed; `sentence` says what is missing and what to do."""

    code: WaitCode
    sentence: str
    missing_bytes: int = 0
    common: Common = field(default_factory=Common)


Outcome = Solo | Split | Shards | Wait
