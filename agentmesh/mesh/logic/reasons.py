"""Reasons for closing a connection: short enough to travel, and safe to show whoever wrote them."""

from __future__ import annotations

from agentmesh.mesh.logic.transport_limits import MAX_REASON_BYTES


def clip_reason(reason: str) -> str:
    """`reason` cut to what is carried to the far end, between two characters; what cannot be printed becomes `?`."""
    printable = "".join(c if c.isprintable() else "?" for c in reason[:MAX_REASON_BYTES])
    return printable.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
