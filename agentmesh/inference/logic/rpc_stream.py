"""What is ours on an `rpc` stream: its opening, and three commands beside llama.cpp's. docs/rpc-relay.md has the format."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.model_files import MAX_SET_PARTS
from agentmesh.inference.logic.rpc_limits import (
    MAX_ALIGNMENT,
    MAX_JOB_CHARS,
    MAX_OPEN_FRAME_BYTES,
    MAX_PIECE_BYTES,
    MAX_REASON_CHARS,
    MAX_RPC_DEVICES,
    MIN_MAX_SIZE,
)
from agentmesh.inference.logic.rpc_wire import REQUEST_SHAPES, SET_TENSOR_HEAD_BYTES, Command, Request, Shape

STREAM_FORMAT: Final = 1
FRAME_LENGTH_BYTES: Final = 4


class RelayCommand(IntEnum):
    """From the host to the exit only."""

    FILE_TENSOR = 0x80
    DEFLATED = 0x81
    DEFLATED_PIECE = 0x82


MAY_BE_DEFLATED: Final = frozenset({Command.SET_TENSOR, Command.GRAPH_COMPUTE})

STREAM_SHAPES: Final[Mapping[int, Shape]] = {
    **{command: shape for command, shape in REQUEST_SHAPES.items() if command != Command.HELLO},
    RelayCommand.FILE_TENSOR: Shape(SET_TENSOR_HEAD_BYTES, SET_TENSOR_HEAD_BYTES),
    RelayCommand.DEFLATED: Shape(9, 9),
    RelayCommand.DEFLATED_PIECE: Shape(1, MAX_PIECE_BYTES),
}

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Unsigned = Annotated[int, msgspec.Meta(ge=0)]  # msgpack itself ends at 64 bits
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Open(msgspec.Struct, frozen=True, array_like=True):
    """The host's first frame: which job, and which files it reads, by the SHA-256 of each part in order. No files: bytes flow."""

    job: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_JOB_CHARS)]
    files: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_SET_PARTS)] = ()
    format: int = STREAM_FORMAT


class OpenStatus(IntEnum):
    """What the exit says."""

    READY = 0
    REFUSED = 1
    BUSY = 2
    FAILED = 3
    BLIND = 4  # the RPC server speaks another version: only bytes from here on


class Device(msgspec.Struct, frozen=True, array_like=True):
    """One device of the worker. Bytes."""

    alignment: Unsigned
    max_size: Unsigned
    free: Unsigned
    total: Unsigned


def is_device(device: Device) -> bool:
    """Whether llama-server can work with such a device: it asserts that alignments are powers of two, and cuts buffers to `max_size`."""
    alignment = device.alignment
    return 0 < alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0 and device.max_size >= MIN_MAX_SIZE


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """The exit's only frame."""

    status: OpenStatus
    reason: str = ""
    rpc_version: tuple[Byte, Byte, Byte] = (0, 0, 0)
    devices: Annotated[tuple[Device, ...], msgspec.Meta(max_length=MAX_RPC_DEVICES)] = ()
    same_files: bool = False
    format: int = STREAM_FORMAT


T = TypeVar("T")

open_decoder = msgspec.msgpack.Decoder(Open)
opened_decoder = msgspec.msgpack.Decoder(Opened)
_encoder = msgspec.msgpack.Encoder()


def frame_of(message: Open | Opened) -> bytes:
    """A message as it goes out: its length, big-endian, and itself. A reason that is too long is cut."""
    if isinstance(message, Opened):
        message = msgspec.structs.replace(message, reason=message.reason[:MAX_REASON_CHARS])
    body = _encoder.encode(message)
    if len(body) > MAX_OPEN_FRAME_BYTES:
        raise ValueError(f"an opening of {len(body)} bytes cannot be sent")
    return len(body).to_bytes(FRAME_LENGTH_BYTES, "big") + body


def frame_bytes(prefix: bytes) -> int:
    """How long the frame behind these four bytes is. Raises: ProtocolError."""
    length = int.from_bytes(prefix, "big")
    if not 0 < length <= MAX_OPEN_FRAME_BYTES:
        raise ProtocolError(f"A peer opened an rpc stream with a frame of {length} bytes.")
    return length


def decode_frame(body: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Raises: ProtocolError: it is something else."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A peer opened an rpc stream with a malformed frame: {error}") from error


def deflated_inner(request: Request) -> tuple[int, int]:
    """(command, size) of the request that a DEFLATED announces. Raises: ProtocolError: it may not come so, or not so long."""
    command, size = request.head[0], int.from_bytes(request.head[1:9], "little")
    if command not in MAY_BE_DEFLATED:
        raise ProtocolError(f"The RPC command {command} cannot come deflated.")
    shape = REQUEST_SHAPES[command]
    if not shape.minimum <= size <= shape.maximum:
        raise ProtocolError(f"The RPC command {command} cannot have {size} bytes.")
    return command, size
