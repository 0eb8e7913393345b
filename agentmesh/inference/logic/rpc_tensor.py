"""A tensor as llama.cpp's RPC protocol serialises it: 296 bytes, little-endian, packed (struct rpc_tensor in ggml-rpc.cpp)."""

from __future__ import annotations

from typing import Final

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.gguf_header import TENSOR_TYPES

TENSOR_BYTES: Final = 296
NAME_AT: Final = 228
NAME_BYTES: Final = 64
_DIMENSIONS: Final = 4


class Tensor:
    """A view of a serialised tensor: the fields that a relay looks at. Nothing is copied."""

    __slots__ = ("_view",)

    def __init__(self, payload: bytes | memoryview, at: int = 0) -> None:
        self._view = memoryview(payload)[at : at + TENSOR_BYTES]
        if len(self._view) != TENSOR_BYTES:
            raise ProtocolError(f"A tensor has {TENSOR_BYTES} bytes, not {len(self._view)}.")

    @property
    def id(self) -> int:
        return self._integer(0, 8)

    @property
    def type_number(self) -> int:
        return self._integer(8, 4)

    @property
    def buffer(self) -> int:
        return self._integer(12, 8)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements in each of four dimensions."""
        return tuple(self._integer(20 + 4 * d, 4) for d in range(_DIMENSIONS))

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one to the next, in each of four dimensions."""
        return tuple(self._integer(36 + 4 * d, 4) for d in range(_DIMENSIONS))

    @property
    def data(self) -> int:
        """The address on the worker."""
        return self._integer(220, 8)

    @property
    def name(self) -> str | None:
        """None: it is no UTF-8, so no tensor of a file."""
        raw = bytes(self._view[NAME_AT : NAME_AT + NAME_BYTES])
        try:
            return raw.split(b"\0", 1)[0].decode("utf-8")
        except UnicodeDecodeError:
            return None

    @property
    def size_bytes(self) -> int | None:
        """Of all its elements, packed; None where type or shape cannot be."""
        block = TENSOR_TYPES.get(self.type_number)
        if block is None or self.shape[0] % block[0]:
            return None
        elements = 1
        for length in self.shape:
            elements *= length
        return elements // block[0] * block[1]

    def _integer(self, at: int, width: int) -> int:
        return int.from_bytes(self._view[at : at + width], "little")


def build_tensor(
    name: str, type_number: int, shape: tuple[int, ...], *, id_: int = 1, buffer: int = 1, data: int = 0
) -> bytes:
    """A serialised tensor with these fields, all others zero."""
    padded = (*shape, *([1] * (_DIMENSIONS - len(shape))))
    head = id_.to_bytes(8, "little") + type_number.to_bytes(4, "little") + buffer.to_bytes(8, "little")
    lengths = b"".join(length.to_bytes(4, "little") for length in padded)
    before_data = (head + lengths).ljust(220, b"\0")
    return (before_data + data.to_bytes(8, "little") + name.encode().ljust(NAME_BYTES, b"\0")).ljust(
        TENSOR_BYTES, b"\0"
    )
