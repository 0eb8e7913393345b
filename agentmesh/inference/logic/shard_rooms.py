"""How many experts of each layer the nodes can hold, each beside everything that is no expert.

Owns that arithmetic. Which experts a node gets, and their ranking, are another part's.
"""

from __future__ import annotations

from collections.abc import Iterable

from agentmesh.inference.logic.fit import batch_tokens, buffer_bytes
from agentmesh.inference.logic.gguf_facts import ModelFacts
from agentmesh.inference.logic.placement import less_headroom
from agentmesh.inference.logic.split_limits import MIN_SHARD_NODES
from agentmesh.inference.logic.split_values import NodeFacts, ShardRoom


def shard_rooms(
    facts: ModelFacts, nodes: Iterable[NodeFacts], context_tokens: int, slots: int, min_experts: int = 0
) -> tuple[ShardRoom, ...] | None:
    """What each node holds, by node id; those that cannot hold the minimum are left out. None: too few, or no room for
    as many experts as there are. (Which ones, moe.py decides: each node gets the most used ones, so some may be on none.)

    Args:
        min_experts: of each layer, that a shard needs to be of use; 0: half. Never less than are used for a token.
    """
    least = max(min_experts or -(-facts.expert_count // 2), facts.expert_used_count, 1)
    expert_bytes = max(-(-facts.expert_bytes // facts.expert_count), 1)
    shared_bytes = facts.weight_bytes - facts.expert_bytes + facts.kv_bytes(context_tokens) * slots
    ubatch = batch_tokens(facts, context_tokens)
    on_memory, on_device = (
        shared_bytes + buffer_bytes(facts, context_tokens, slots, ubatch_tokens=ubatch, on_device=where)
        for where in (False, True)
    )
    found: list[ShardRoom] = []
    for node in sorted(nodes, key=lambda one: one.node):
        fixed = on_device if node.devices else on_memory
        experts = min((less_headroom(node.free_bytes) - fixed) // expert_bytes, facts.expert_count)
        if experts >= least:
            found.append(ShardRoom(node.node, experts, fixed + experts * expert_bytes))
    covered = sum(room.experts for room in found)
    return tuple(found) if len(found) >= MIN_SHARD_NODES and covered >= facts.expert_count else None
