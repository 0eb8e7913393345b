"""The payload of a `node` record: what a node offers to the mesh. Pure; publishing and following it is presence.py's.

Additive: fields are only ever appended, unknown ones are ignored, and a payload that does not decode makes its node offer nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentmesh.core.units import KIB
from agentmesh.inference.logic.shard_name import is_shard_name
from agentmesh.inference.logic.target import ServedModel

MAX_OFFER_BYTES: Final = 8 * KIB  # mesh/logic/kinds.py: NODE
MAX_MODELS: Final = 64  # of one node
MAX_NAME_CHARS: Final = 200
MAX_ALIASES: Final = 8
MAX_WAITS_CHARS: Final = 500
MAX_SLOTS: Final = 256  # llama.cpp runs no more at once; who claims more would look idle whatever it is given
MAX_ADDRESSES: Final = 8
MAX_ADDRESS_CHARS: Final = 264  # a host name, brackets and a port
OFFER_VERSION: Final = 1


class NodeOffer(msgspec.Struct, frozen=True, array_like=True):
    """What one node offers.

    Attributes:
        version: of this structure.
        program: agentmesh's version there.
        engine: the engine's build, empty if there is none.
        memory_bytes: what models may use there; 0 if unknown.
        models: what it serves or is about to serve.
        has_files: whether it gives its model files to members over `blob` streams.
        addresses: where members that are not its neighbours find it, best first; each a host with its UDP port.
        bulk_port: TCP port of its fast path, 0 if it has none.
    """

    version: int
    program: str
    engine: str
    memory_bytes: int
    models: tuple[ServedModel, ...]
    has_files: bool = False
    addresses: tuple[str, ...] = ()
    bulk_port: int = 0


_decoder = msgspec.msgpack.Decoder(NodeOffer)


def encode_offer(offer: NodeOffer) -> bytes:
    """The payload. Models that do not fit MAX_OFFER_BYTES are left out from the end."""
    offer = msgspec.structs.replace(
        offer,
        program=offer.program[:MAX_NAME_CHARS],
        engine=offer.engine[:MAX_NAME_CHARS],
        models=offer.models[:MAX_MODELS],
        addresses=_usable_addresses(offer.addresses),
    )
    while len(payload := msgspec.msgpack.encode(offer)) > MAX_OFFER_BYTES and offer.models:
        offer = msgspec.structs.replace(offer, models=offer.models[:-1])
    return payload


def decode_offer(payload: bytes) -> NodeOffer | None:
    """What a peer offers, with unusable models left out; None if it cannot be read at all."""
    try:
        offer = _decoder.decode(payload)
    # Broken UTF-8 ends in UnicodeDecodeError, deep nesting in RecursionError: neither is msgspec's.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    models = tuple(_believable(model) for model in offer.models[:MAX_MODELS] if _usable(model))
    addresses = _usable_addresses(offer.addresses)
    bulk_port = offer.bulk_port if 0 <= offer.bulk_port <= 65_535 else 0
    return msgspec.structs.replace(offer, models=models, addresses=addresses, bulk_port=bulk_port)


def _usable(model: ServedModel) -> bool:
    numbers = (model.context_tokens, model.slots, model.parameters, model.size_bytes)
    names = (model.id, *model.aliases)
    return (
        len(model.aliases) <= MAX_ALIASES
        and all(0 < len(name) <= MAX_NAME_CHARS and name.isprintable() for name in names)
        and all(0 <= number < 1 << 53 for number in numbers)
        and model.slots >= 1
        and is_shard_name(model.shard)
    )


def _believable(model: ServedModel) -> ServedModel:
    waits = model.waits if len(model.waits) <= MAX_WAITS_CHARS and model.waits.isprintable() else ""
    slots = min(model.slots, MAX_SLOTS)
    if (slots, waits) == (model.slots, model.waits):
        return model
    return msgspec.structs.replace(model, slots=slots, waits=waits)


def _usable_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(address for address in addresses if 0 < len(address) <= MAX_ADDRESS_CHARS)[:MAX_ADDRESSES]
