"""Nodes and models for tests of plans: round numbers, no files."""

from __future__ import annotations

from agentmesh.inference.logic.gguf_facts import ModelFacts, VocabularyFacts
from agentmesh.inference.logic.kv_cache import LayerCache
from agentmesh.inference.logic.plan import make_plan
from agentmesh.inference.logic.split_values import (
    DeviceFacts,
    ModelParts,
    NodeFacts,
    Outcome,
    PlanModel,
    Split,
    Wait,
    Wish,
)

GB = 1_000_000_000
COMMIT = "0c1e570aa"
RPC = (7, 0, 0)


def a_model(
    *,
    layers: int = 40,
    layer_bytes: int = GB // 2,
    input_bytes: int = 200_000_000,
    output_bytes: int = 300_000_000,
    context: int = 32_768,
    experts: int = 0,
    uneven: tuple[int, ...] = (),
    file: str = "aa",
) -> PlanModel:
    """20.5 GB unless told otherwise; 8 KV heads of 64 in each layer: 2 kB a token and layer."""
    blocks = uneven or (layer_bytes,) * layers
    whole = sum(blocks) + input_bytes + output_bytes
    facts = ModelFacts(
        architecture="qwen3moe" if experts else "llama",
        name="big",
        quant="Q4_K_M",
        parameter_count=32 * GB,
        weight_bytes=whole,
        tensor_count=9 * len(blocks) + 3,
        layer_count=len(blocks),
        context_length=context,
        embedding_length=4096,
        head_count=32,
        head_count_kv=8,
        key_length=64,
        value_length=64,
        sliding_window=0,
        expert_count=experts,
        expert_used_count=min(experts, 4),
        expert_bytes=sum(blocks) * 9 // 10 if experts else 0,
        vocabulary=VocabularyFacts("gpt2", "qwen2", 150_000, "d", 1, 2, False),
        chat_template=True,
        caches=(LayerCache(512, 512),) * len(blocks),
        feed_forward_length=11_008,
        expert_feed_forward_length=1024 if experts else 0,
    )
    return PlanModel("big", facts, ModelParts(input_bytes, tuple(blocks), output_bytes), (file,))


def node_id(number: int) -> bytes:
    return number.to_bytes(32, "big")


def a_node(
    number: int,
    free_gb: float,
    *,
    gpus: tuple[float, ...] = (),
    rtts: dict[int, float] | None = None,
    commit: str = COMMIT,
    rpc: tuple[int, int, int] = RPC,
    has_rpc: bool = True,
    lends_all: bool = True,
    lends_to: tuple[int, ...] = (),
    client: bool = False,
    part: bool = True,
    files: tuple[str, ...] = (),
) -> NodeFacts:
    """A node with so much machine memory, and accelerators with so much each. `rtts` by the other's number."""
    return NodeFacts(
        node=node_id(number),
        name=f"n{number}",
        devices=tuple(DeviceFacts(f"CUDA{i}", int(gb * GB), int(gb * GB)) for i, gb in enumerate(gpus)),
        machine_free_bytes=int(free_gb * GB),
        machine_total_bytes=int(free_gb * GB),
        rtt_ms=tuple((node_id(other), float(rtt)) for other, rtt in sorted((rtts or {}).items())),
        engine_commit=commit,
        rpc_version=rpc,
        has_rpc=has_rpc,
        files=files,
        lends_to=tuple(node_id(one) for one in lends_to),
        lends_to_all=lends_all,
        is_client=client,
        takes_part=part,
    )


def near(*others: int, ms: float = 1.0) -> dict[int, float]:
    """Round trips to these nodes."""
    return dict.fromkeys(others, ms)


MODEL = a_model()
TWO = [a_node(1, 16, rtts=near(2)), a_node(2, 14)]
THREE = [a_node(1, 16, rtts={2: 1, 3: 10}), a_node(2, 8), a_node(3, 8)]


def plan(nodes: list[NodeFacts], wish: Wish | None = None, model: PlanModel = MODEL) -> Outcome:
    return make_plan(model, wish or Wish(), nodes)


def split(nodes: list[NodeFacts], wish: Wish | None = None, model: PlanModel = MODEL) -> Split:
    outcome = plan(nodes, wish, model)
    assert isinstance(outcome, Split), outcome
    return outcome


def wait(nodes: list[NodeFacts], wish: Wish | None = None, model: PlanModel = MODEL) -> Wait:
    outcome = plan(nodes, wish, model)
    assert isinstance(outcome, Wait), outcome
    return outcome
