"""What a key is to the mesh at a moment: the answer that Trust gives and record acceptance asks for."""

from __future__ import annotations

from enum import StrEnum


class Standing(StrEnum):
    MEMBER = "member"
    UNKNOWN = "unknown"
    """No valid chain is known (yet)."""
    OUT = "out"
    """Revoked."""
