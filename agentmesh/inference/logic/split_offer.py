"""The payload of a `split` record: what a node lends, which big models it wants, and what it hosts and serves of them. Pure.

Additive: fields are only ever appended, and a payload that does not decode, or cannot be true, makes its node take no part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from agentmesh.core.units import KIB
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, Claim, DeviceFacts, Wish

MAX_SPLIT_OFFER_BYTES: Final = 8 * KIB  # mesh/logic/kinds.py: SPLIT
MAX_WANTED: Final = 8
MAX_WORKED: Final = 8
CONTENT_CHARS: Final = 32
SPLIT_OFFER_VERSION: Final = 1

MACHINE: Final = ""  # the device name that stands for the machine's memory in `held`


class WantedModel(msgspec.Struct, frozen=True, array_like=True):
    """A model that this node wants spread, and whose files it has: it may host it.

    Attributes:
        content: names the files by what is in them (`content_of`).
        id: what the API calls it.
        claim: what it hosts of it.
        held: (device, bytes) that its own part takes here now; "" is the machine's memory.
    """

    content: str
    id: str
    wish: Wish = Wish()
    claim: Claim | None = None
    held: tuple[tuple[str, int], ...] = ()


class WorkedModel(msgspec.Struct, frozen=True, array_like=True):
    """A model of which this node serves, or served, a part for a host. `held` as in WantedModel."""

    content: str
    seen_term: int
    held: tuple[tuple[str, int], ...] = ()


class SplitOffer(msgspec.Struct, frozen=True, array_like=True):
    """What one node says. Free memory is what is free now, with what `held` names already missing from it.

    The other fields are those of NodeFacts.
    """

    version: int = SPLIT_OFFER_VERSION
    name: str = ""
    devices: tuple[DeviceFacts, ...] = ()
    machine_free_bytes: int = 0
    machine_total_bytes: int = 0
    machine_bytes_per_s: int = 0
    rtt_ms: tuple[tuple[bytes, float], ...] = ()
    engine_commit: str = ""
    rpc_version: tuple[int, int, int] = NO_RPC_VERSION
    has_rpc: bool = False
    lends_to: tuple[bytes, ...] = ()
    lends_to_all: bool = False
    wants: tuple[WantedModel, ...] = ()
    works: tuple[WorkedModel, ...] = ()


def content_of(digests: Sequence[bytes]) -> str:
    """Names a model by the SHA-256 of each of its files, in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:CONTENT_CHARS]
