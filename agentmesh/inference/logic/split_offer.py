"""The payload of a `split` record: what a node lends, which big models it wants, and what it hosts and serves of them. Pure.

Additive: fields are only ever appended, and a payload that does not decode, or cannot be true, makes its node take no part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from agentmesh.core.units import KIB
from agentmesh.inference.logic.fit import MAX_CONTEXT_TOKENS, MAX_WANTED_SLOTS
from agentmesh.inference.logic.split_limits import MAX_DEVICES_OF_A_NODE, MAX_PUBLISHED_RTTS, MAX_TERM
from agentmesh.inference.logic.split_values import (
    NO_RPC_VERSION,
    Claim,
    DeviceFacts,
    NodeFacts,
    Way,
    Wish,
    usable_facts,
)

MAX_SPLIT_OFFER_BYTES: Final = 8 * KIB  # mesh/logic/kinds.py: SPLIT
MAX_WANTED: Final = 8
MAX_WORKED: Final = 8
CONTENT_CHARS: Final = 32
SPLIT_OFFER_VERSION: Final = 1

MAX_ID_CHARS: Final = 200  # of a model, as in logic/presence.py
MAX_WORD_CHARS: Final = 64  # names of devices and nodes, commits, digests of plans
_NODE_BYTES: Final = 32
_MAX_BYTES: Final = 1 << 50
_MAX_RTT_MS: Final = 3_600_000.0
_MAX_NUMBERS: Final = 64  # of --tensor-split: more than any plan takes, so that the plan's own sentence is what is read
_MAX_COUNT: Final = 1 << 16

MACHINE: Final = ""  # the device name that stands for the machine's memory in `held`


class WantedModel(msgspec.Struct, frozen=True, array_like=True):
    """A model that this node wants spread, and whose files it has: it may host it.

    Attributes:
        content: names the files by what is in them (`content_of`).
        id: what the API calls it.
        claim: what it hosts of it.
        held: (device, bytes) that its own part takes here now, each device by itself; "" is the machine's memory.
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


# ------------------------------------------------------------------ the payload

_decoder = msgspec.msgpack.Decoder(SplitOffer)


def encode_split_offer(offer: SplitOffer) -> bytes:
    """The payload, at most MAX_SPLIT_OFFER_BYTES. What does not fit is left out from the end of each list: round trips (the nearest
    come first), then models, then those to whom it lends."""
    offer = usable_offer(offer)
    for field in ("rtt_ms", "wants", "works", "lends_to", "devices"):
        entries: tuple[object, ...] = getattr(offer, field)
        payload = msgspec.msgpack.encode(offer)
        while len(payload) > MAX_SPLIT_OFFER_BYTES and entries:
            over = len(payload) - MAX_SPLIT_OFFER_BYTES
            each = max(len(msgspec.msgpack.encode(entries)) // len(entries), 1)
            entries = entries[: -max(over // (2 * each), 1)]
            offer = msgspec.structs.replace(offer, **{field: entries})
            payload = msgspec.msgpack.encode(offer)
    return msgspec.msgpack.encode(offer)


def decode_split_offer(payload: bytes) -> SplitOffer | None:
    """What a peer says, within bounds, with what cannot be true left out; None if it cannot be read, or its memory cannot be true."""
    if len(payload) > MAX_SPLIT_OFFER_BYTES:
        return None
    try:
        offer = _decoder.decode(payload)
    # Broken UTF-8 ends in UnicodeDecodeError, deep nesting in RecursionError: neither is msgspec's.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    sizes = [offer.machine_free_bytes, offer.machine_total_bytes, offer.machine_bytes_per_s]
    for device in offer.devices:
        sizes += [device.free_bytes, device.total_bytes, device.bytes_per_s]
    names = [device.name for device in offer.devices]
    if len(names) > MAX_DEVICES_OF_A_NODE or len(set(names)) != len(names) or not all(map(_is_word, names)):
        return None
    if not all(0 <= count < _MAX_BYTES for count in sizes) or not _is_version(offer.rpc_version):
        return None
    return usable_offer(offer)


def usable_offer(offer: SplitOffer) -> SplitOffer:
    """Cut to its bounds."""
    rtts: dict[bytes, float] = {}
    for peer, rtt in offer.rtt_ms:
        if (
            len(peer) == _NODE_BYTES
            and math.isfinite(rtt)
            and 0 <= rtt <= _MAX_RTT_MS
            and len(rtts) < MAX_PUBLISHED_RTTS
        ):
            rtts.setdefault(peer, rtt)
    lends_to = [node for node in offer.lends_to if len(node) == _NODE_BYTES]
    wants = {model.content: model for model in reversed(offer.wants) if _is_wanted(model)}
    works = {model.content: model for model in reversed(offer.works) if _is_worked(model)}
    return msgspec.structs.replace(
        offer,
        name=offer.name[:MAX_WORD_CHARS] if offer.name.isprintable() else "",
        rtt_ms=tuple(rtts.items()),
        engine_commit=offer.engine_commit if _is_word(offer.engine_commit) else "",
        lends_to=tuple(lends_to[:MAX_PUBLISHED_RTTS]),
        wants=tuple(_bounded(model) for model in reversed(wants.values()))[:MAX_WANTED],
        works=tuple(_bounded_work(model) for model in reversed(works.values()))[:MAX_WORKED],
    )


def says_something(offer: SplitOffer) -> bool:
    """Whether its node wants, lends or serves anything."""
    return bool(offer.wants or offer.works or offer.lends_to_all or offer.lends_to)


def facts_of(
    offer: SplitOffer, node: bytes, content: str, *, is_client: bool = False, highest_term: int = MAX_TERM
) -> NodeFacts:
    """What this node is for one model. Its free memory is what would be free if its part of this model were not running.

    `files` is (content,) for who wants it: the record says that its author has the files. What cannot be true takes no part, and
    terms above `highest_term` (logic/terms.py) count for nothing.
    """
    wanted = next((model for model in offer.wants if model.content == content), None)
    worked = next((model for model in offer.works if model.content == content), None)
    held: dict[str, int] = {}
    for model in (wanted, worked):
        for place, count in model.held if model is not None else ():
            held[place] = held.get(place, 0) + count
    machine = min(offer.machine_free_bytes + held.get(MACHINE, 0), offer.machine_total_bytes)
    lends = offer.lends_to_all or bool(offer.lends_to)
    facts = usable_facts(
        NodeFacts(
            node=node,
            name=offer.name,
            devices=tuple(
                msgspec.structs.replace(d, free_bytes=min(d.free_bytes + held.get(d.name, 0), d.total_bytes))
                for d in offer.devices
            ),
            machine_free_bytes=machine,
            machine_total_bytes=offer.machine_total_bytes,
            rtt_ms=offer.rtt_ms,
            engine_commit=offer.engine_commit,
            rpc_version=offer.rpc_version,
            has_rpc=offer.has_rpc,
            files=(content,) if wanted is not None else (),
            lends_to=offer.lends_to,
            lends_to_all=offer.lends_to_all,
            is_client=is_client,
            takes_part=wanted is not None or lends,
            machine_bytes_per_s=offer.machine_bytes_per_s,
            claim=wanted.claim if wanted is not None and claimed_term(wanted) <= highest_term else None,
            seen_term=worked.seen_term if worked is not None and worked.seen_term <= highest_term else 0,
            may_host=wanted is not None,
        )
    )
    return facts if facts is not None else NodeFacts(node, takes_part=False, may_host=False)


def claimed_term(model: WantedModel) -> int:
    """0: it claims nothing."""
    return model.claim.term if model.claim is not None else 0


def _is_wanted(model: WantedModel) -> bool:
    return (
        _is_word(model.content)
        and 0 < len(model.id) <= MAX_ID_CHARS
        and model.id.isprintable()
        and _is_wish(model.wish)
        and _are_held(model.held)
    )


def _is_worked(model: WorkedModel) -> bool:
    return _is_word(model.content) and _are_held(model.held)


def _bounded(model: WantedModel) -> WantedModel:
    """Without a claim that cannot be."""
    claim = model.claim
    if claim is None or (0 < claim.term <= MAX_TERM and (not claim.plan_digest or _is_word(claim.plan_digest))):
        return model
    return msgspec.structs.replace(model, claim=None)


def _bounded_work(model: WorkedModel) -> WorkedModel:
    return model if 0 <= model.seen_term <= MAX_TERM else msgspec.structs.replace(model, seen_term=0)


def _is_wish(wish: Wish) -> bool:
    counts = (wish.min_peers, wish.min_experts)
    return (
        wish.way in tuple(Way)
        and len(wish.tensor_split) <= _MAX_NUMBERS
        and all(map(math.isfinite, wish.tensor_split))
        and (wish.context_tokens is None or 0 < wish.context_tokens <= MAX_CONTEXT_TOKENS)
        and (wish.slots is None or 0 < wish.slots <= MAX_WANTED_SLOTS)
        and len(wish.host) in (0, _NODE_BYTES)
        and all(0 <= count < _MAX_COUNT for count in counts)
        and 0 <= wish.host_extra_bytes < _MAX_BYTES
        and 0 <= wish.alone_extra_bytes < _MAX_BYTES
    )


def _are_held(held: Iterable[tuple[str, int]]) -> bool:
    pairs = tuple(held)
    known = all((not place or _is_word(place)) and 0 <= count < _MAX_BYTES for place, count in pairs)
    return known and len(pairs) <= MAX_DEVICES_OF_A_NODE + 1


def _is_version(version: tuple[int, int, int]) -> bool:
    return all(0 <= number <= 255 for number in version)  # bytes on the wire


def _is_word(text: str) -> bool:
    return 0 < len(text) <= MAX_WORD_CHARS and text.isprintable()
