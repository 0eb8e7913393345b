"""Whether a plan that runs is still possible, and whether another is worth a restart.

Owns both rules; both are lenient on purpose: what runs is kept, with a margin, or every change of a record would restart it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agentmesh.inference.logic.election import unfit, unfit_host, why_not
from agentmesh.inference.logic.plan import rooms_of
from agentmesh.inference.logic.split_limits import KEPT_RTT_MS
from agentmesh.inference.logic.split_values import (
    ExclusionCode,
    NodeFacts,
    Outcome,
    Share,
    Solo,
    Split,
    Wish,
    short_id_text,
)


def broken(
    plan: Solo | Split, nodes: Iterable[NodeFacts], name_of: Callable[[bytes], str] = short_id_text
) -> str | None:
    """Why the plan cannot go on, in a sentence; None if it can. Of memory the headroom may be used up, of the round trip a quarter
    more than the cap. `name_of`: what nodes are called that are gone."""
    by_id = {node.node: node for node in nodes}
    host = by_id.get(plan.host)
    if host is None:
        return f"Its host {name_of(plan.host)} is gone."
    if not host.may_host:
        return f"{host.shown} does not want it any more."
    if isinstance(plan, Solo):
        rooms = {room.device: room for room in rooms_of(host)}
        room = rooms.get(plan.fit.room.device)
        enough = room is not None and plan.fit.need.total <= room.free_bytes
        return None if enough and not host.is_client else f"{host.shown} has not enough memory for it any more."
    if (why := unfit_host(host)) is not None:
        return why.sentence
    for worker in plan.workers:
        if (node := by_id.get(worker)) is None:
            continue  # its lease tells whether it is there; a machine that stalls for seconds is seen by nobody meanwhile
        why = unfit(node) or why_not(host, node, KEPT_RTT_MS)
        if why is not None and why.code is not ExclusionCode.RTT_UNKNOWN:
            return why.sentence
    return next((_over(share, by_id[share.place.node]) for share in plan.shares if _short(share, by_id)), None)


def better(
    plan: Solo | Split, outcome: Outcome, wish: Wish, name_of: Callable[[bytes], str] = short_id_text
) -> str | None:
    """Why `outcome` is worth a restart of what runs; None if it is not."""
    if isinstance(plan, Solo) or not isinstance(outcome, Solo | Split):
        return None
    if isinstance(outcome, Solo):
        return f"{name_of(outcome.node)} can hold it alone now."
    if wish.host and outcome.host == wish.host != plan.host:
        return f"--host-node names {name_of(wish.host)}."
    if wish.context_tokens is not None and plan.context_tokens != wish.context_tokens == outcome.context_tokens:
        return f"--ctx-size asks for {wish.context_tokens:,} tokens."
    if wish.tensor_split and plan.workers == outcome.workers and plan.tensor_split != outcome.tensor_split:
        return "--tensor-split asks for other layers."
    if len(plan.workers) < wish.min_peers <= len(outcome.workers):
        return f"--min-peers asks for {wish.min_peers} workers."
    return None


def _free(share: Share, node: NodeFacts) -> int:
    if share.place.device is None:
        return node.machine_free_bytes
    return next((d.free_bytes for d in node.devices if d.name == share.place.device), 0)


def _short(share: Share, by_id: dict[bytes, NodeFacts]) -> bool:
    node = by_id.get(share.place.node)
    return node is not None and share.layers > 0 and share.need_bytes > _free(share, node)


def _over(share: Share, node: NodeFacts) -> str:
    return f"{node.shown} has not enough memory for its {share.layers} layers any more."
