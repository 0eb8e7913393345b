"""Requests on a `control` stream after admission: one request, one answer, then the stream ends.

Msgpack arrays that begin with a tag; elements added by later versions follow at the end and are ignored, and a request
whose tag is unknown is declined.
"""

from __future__ import annotations

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.certificate import Chain, JoinProof


class Renew(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Another year, please: this is my chain."""

    chain: Chain


class Vouch(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """You knew me before somebody above me was revoked: vouch for me. This is my chain."""

    chain: Chain


class ForwardJoin(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Somebody asks me to join by an invite of yours. `proof.server` is the one who asks this."""

    invite_chain: Chain
    joiner: bytes
    proof: JoinProof


class Granted(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Here is the chain."""

    chain: Chain


class Declined(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """No: a handshake_messages.RefusalCode and a sentence for a person."""

    code: str
    sentence: str


ControlRequest = Renew | Vouch | ForwardJoin
ControlAnswer = Granted | Declined

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[ControlRequest] = msgspec.msgpack.Decoder(ControlRequest)
_answer_decoder: msgspec.msgpack.Decoder[ControlAnswer] = msgspec.msgpack.Decoder(ControlAnswer)


def encode_control(message: ControlRequest | ControlAnswer) -> bytes:
    return _encoder.encode(message)


def parse_request(data: bytes) -> ControlRequest:
    """Raises: ProtocolError."""
    try:
        return _request_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A peer sent a malformed or unknown control request: {error}") from error


def parse_answer(data: bytes) -> ControlAnswer:
    """Raises: ProtocolError."""
    try:
        return _answer_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A peer sent a malformed control answer: {error}") from error
