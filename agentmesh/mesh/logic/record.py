"""The signed record: what every node replicates. Format and checks of one record; sets of them live in records.py.

A record on the wire is {body, signature}. The body is carried and stored exactly as its author encoded and signed it, so
a field that this version does not know survives being forwarded. id = first 16 bytes of SHA-256(body).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.limits import MAX_PAYLOAD_BYTES

RECORD_VERSION: Final = 1
RECORD_SIGNING_PREFIX: Final = b"agentmesh/1 record\x00"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
ID_BYTES: Final = 16
MAX_KIND_CHARS: Final = 24
MAX_SUBKEY_BYTES: Final = 64
# Header fields take well under 1 KiB around the payload.
MAX_BODY_BYTES: Final = MAX_PAYLOAD_BYTES + 1024

Verify = Callable[[bytes, bytes, bytes], bool]
"""verify(public key, signature, message): whether the Ed25519 signature is good."""


class RecordBody(msgspec.Struct, array_like=True, frozen=True):
    """What the author signs. Further fields may follow in later versions and are ignored."""

    version: int
    mesh: bytes
    kind: str
    author: bytes
    subkey: bytes
    timestamp_ms: int
    expires_ms: int
    payload: bytes


class SignedRecord(msgspec.Struct, array_like=True, frozen=True):
    """A record as it travels and is stored."""

    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed record. `signed` holds the exact bytes; `id` names them."""

    id: bytes
    kind: str
    author: bytes
    subkey: bytes
    timestamp_ms: int
    expires_ms: int
    payload: bytes
    signed: SignedRecord

    @property
    def size_bytes(self) -> int:
        return len(self.signed.body) + SIGNATURE_BYTES


_body_decoder = msgspec.msgpack.Decoder(RecordBody)
_encoder = msgspec.msgpack.Encoder()


def record_id(body: bytes) -> bytes:
    """The 16-byte id of a record's body."""
    return hashlib.sha256(body).digest()[:ID_BYTES]


def signing_bytes(body: bytes) -> bytes:
    """The bytes that the author's signature covers."""
    return RECORD_SIGNING_PREFIX + body


def encode_body(body: RecordBody) -> bytes:
    return _encoder.encode(body)


def build_record(body: RecordBody, sign: Callable[[bytes], bytes]) -> Record:
    """Encode, sign and parse a record of our own."""
    raw = encode_body(body)
    return parse_record(SignedRecord(raw, sign(signing_bytes(raw))), mesh=body.mesh)


def parse_record(signed: SignedRecord, *, mesh: bytes) -> Record:
    """Check shape and sizes (not the signature) of a record that a peer sent.

    Raises:
        ProtocolError: the record is malformed, of another mesh, or over a limit.
    """
    if len(signed.signature) != SIGNATURE_BYTES or len(signed.body) > MAX_BODY_BYTES:
        raise ProtocolError("A record has a signature or body of impossible size.")
    try:
        body = _body_decoder.decode(signed.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A record's body is malformed: {error}") from error
    _check_shape(body, mesh)
    return Record(
        id=record_id(signed.body),
        kind=body.kind,
        author=body.author,
        subkey=body.subkey,
        timestamp_ms=body.timestamp_ms,
        expires_ms=body.expires_ms,
        payload=body.payload,
        signed=signed,
    )


def _check_shape(body: RecordBody, mesh: bytes) -> None:
    if body.version < RECORD_VERSION:
        raise ProtocolError("A record has a version that never existed.")
    if body.mesh != mesh:
        raise ProtocolError("A record belongs to another mesh.")
    if len(body.author) != KEY_BYTES or len(body.subkey) > MAX_SUBKEY_BYTES:
        raise ProtocolError("A record's author or subkey has an impossible size.")
    if not 0 < len(body.kind) <= MAX_KIND_CHARS or len(body.payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError("A record's kind or payload is over its limit.")
    if not 0 < body.timestamp_ms < body.expires_ms < 2**53:
        raise ProtocolError("A record's times are impossible.")


def signature_is_good(record: Record, verify: Verify) -> bool:
    """Whether the author really signed this record."""
    return verify(record.author, record.signed.signature, signing_bytes(record.signed.body))
