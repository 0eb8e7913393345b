"""Invite tokens: `amesh1.` and base64url of {length, invite chain, invite's private key, bootstrap entries, mesh name, checksum}.

A token is a secret: who holds it can join. Nothing here logs, and the private key is left out of every `repr`. Whether the
key fits the chain takes a signature library and is checked in admission.py.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from agentmesh.core.errors import TokenError
from agentmesh.mesh.logic.capability import verify_chain
from agentmesh.mesh.logic.certificate import (
    CapabilityError,
    Certificate,
    Chain,
    EarlyChain,
    ExpiredChain,
    MalformedChain,
    NewerChain,
    Role,
    check_chain_size,
    leaf_of,
)
from agentmesh.mesh.logic.limits import MAX_BOOTSTRAP_ADDRESSES, MAX_NAME_BYTES, MAX_TOKEN_CHARS
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.names import safe_name
from agentmesh.mesh.logic.record import KEY_BYTES, Verify

TOKEN_PREFIX: Final = "amesh1."  # noqa: S105 - public
_ANY_PREFIX: Final = re.compile(r"amesh([0-9]{1,4})\.")
_LENGTH_BYTES: Final = 2
_CHECKSUM_BYTES: Final = 4  # against slips of the hand; forgery is stopped by the chain's signatures
_CHECKSUM_SALT: Final = b"agentmesh/1 token\x00"

NOT_A_TOKEN: Final = "This is not an invite token: one begins with 'amesh1.'; ask for one made by `agentmesh invite`."  # noqa: S105
DAMAGED: Final = "The invite token is damaged: characters were changed or lost. Copy the whole line again."
NEWER: Final = "The invite token was made by a newer version of agentmesh; update this one."


@dataclass(frozen=True, slots=True)
class InviteToken:
    """What a token holds. `bootstrap` are members to dial, most useful first; `relays` is for later versions."""

    chain: Chain
    seed: bytes = field(repr=False)
    mesh_name: str
    bootstrap: tuple[PeerEntry, ...]
    relays: tuple[str, ...] = ()

    @property
    def certificate(self) -> Certificate:
        return leaf_of(self.chain)

    @property
    def mesh(self) -> bytes:
        return self.certificate.mesh


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    chain: Chain
    seed: bytes
    mesh_name: str
    bootstrap: tuple[PeerEntry, ...]
    relays: tuple[str, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode_token(token: InviteToken) -> str:
    """The token as one line of text.

    Raises:
        TokenError: it would be longer than MAX_TOKEN_CHARS (a deep chain with many addresses).
    """
    body = _encoder.encode(_Wire(token.chain, token.seed, token.mesh_name, token.bootstrap, token.relays))
    packed = len(body).to_bytes(_LENGTH_BYTES, "big") + body if len(body) < 1 << 16 else b""
    text = TOKEN_PREFIX + base64.urlsafe_b64encode(packed + _checksum(packed)).decode().rstrip("=")
    if not packed or len(text) > MAX_TOKEN_CHARS:
        raise TokenError(
            "The invite token would become too long; a member nearer to the founder can make a shorter one."
        )
    return text


def decode_token(text: str) -> InviteToken:
    """The token in `text`; spaces and line breaks that copying added are ignored. Signatures and times are not checked.

    Raises:
        TokenError: not a token, truncated, damaged, or of a newer version.
    """
    compact = "".join(text[: 4 * MAX_TOKEN_CHARS].split()).strip("\"'`<>")
    prefix = _ANY_PREFIX.match(compact)
    if prefix is None:
        raise TokenError(NOT_A_TOKEN)
    if int(prefix[1]) > 1:
        raise TokenError(NEWER)
    if len(compact) > MAX_TOKEN_CHARS or not compact.startswith(TOKEN_PREFIX):
        raise TokenError(DAMAGED)
    wire = _decode_body(_unpack(compact.removeprefix(TOKEN_PREFIX)))
    token = InviteToken(wire.chain, wire.seed, safe_name(wire.mesh_name), wire.bootstrap, wire.relays)
    _check_shape(token, wire.mesh_name)
    return token


def check_token(token: InviteToken, now_ms: int, verify: Verify) -> Certificate:
    """The invite's certificate, if its chain is good now. What was revoked only the mesh's members know.

    Raises:
        TokenError: expired, not valid yet, forged.
    """
    try:
        return verify_chain(token.chain, token.mesh, now_ms, verify, role=Role.INVITE)
    except ExpiredChain as error:
        when = _date(token.certificate.expires_ms)
        raise TokenError(f"The invite token expired on {when}; ask a member for a new one.") from error
    except EarlyChain as error:
        when = _date(token.certificate.issued_ms)
        raise TokenError(
            f"The invite token is from the future: it was made on {when}. This machine's clock is behind; set it."
        ) from error
    except NewerChain as error:
        raise TokenError(NEWER) from error
    except CapabilityError as error:
        raise TokenError("The invite token is not genuine: its certificates do not prove what they claim.") from error


def _unpack(encoded: str) -> bytes:
    """The body between length and checksum."""
    if not encoded.isascii():
        raise TokenError(DAMAGED)
    try:
        # One character too many for base64 happens to a token that was cut.
        usable = encoded[: len(encoded) - 1] if len(encoded) % 4 == 1 else encoded
        packed = base64.b64decode(usable + "=" * (-len(usable) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise TokenError(DAMAGED) from error
    claimed = int.from_bytes(packed[:_LENGTH_BYTES], "big")
    missing = _LENGTH_BYTES + claimed + _CHECKSUM_BYTES - len(packed)
    if missing > 0 or len(packed) <= _LENGTH_BYTES:
        raise TokenError("The invite token is truncated: its end is missing. Copy the whole line again.")
    body, checksum = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
    if missing < 0 or checksum != _checksum(body) or len(encoded) % 4 == 1:
        raise TokenError(DAMAGED)
    return body[_LENGTH_BYTES:]


def _decode_body(body: bytes) -> _Wire:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TokenError(DAMAGED) from error


def _check_shape(token: InviteToken, raw_name: str) -> None:
    try:
        check_chain_size(token.chain)
        leaf = token.certificate
    except NewerChain as error:
        raise TokenError(NEWER) from error
    except MalformedChain as error:
        raise TokenError(DAMAGED) from error
    entries = token.bootstrap
    shaped = (
        leaf.role is Role.INVITE
        and len(token.seed) == KEY_BYTES
        and len(raw_name) <= MAX_NAME_BYTES
        and len(entries) <= MAX_BOOTSTRAP_ADDRESSES
        and all(len(entry.node) == KEY_BYTES for entry in entries)
        and sum(len(entry.addresses) for entry in entries) <= MAX_BOOTSTRAP_ADDRESSES
    )
    if not shaped:
        raise TokenError(DAMAGED)


def _checksum(packed: bytes) -> bytes:
    return hashlib.sha256(_CHECKSUM_SALT + packed).digest()[:_CHECKSUM_BYTES]


def _date(time_ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return "a date out of range"
