"""llama.cpp's RPC protocol, version 7: commands and their sizes, and parsers and builders for both directions. No I/O.

Source: ggml/src/ggml-rpc/ggml-rpc.cpp. A request is a command (u8), a size (u64) and a payload; a reply a size and a payload; all
little-endian, structures packed. Seven commands have no reply: a parser that waited for one of those would lose step.

Parsers are fed bytes in any split and asked for events. What must be looked at (a whole small request, the head of a large one) comes
with the request; the body behind it comes as views of what was fed, never gathered: whoever lies about a size makes nobody allocate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_limits import MAX_GRAPH_BYTES, MAX_OUTSTANDING_REPLIES, MAX_TENSOR_BYTES
from agentmesh.inference.logic.rpc_tensor import TENSOR_BYTES

PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR: Final = 0
REQUEST_HEAD_BYTES: Final = 9
REPLY_HEAD_BYTES: Final = 8
SET_TENSOR_HEAD_BYTES: Final = TENSOR_BYTES + 1 + 8
CAPABILITY_BYTES: Final = 24


class Command(IntEnum):
    """In llama.cpp's order."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17


WITHOUT_REPLY: Final = frozenset(
    {
        Command.SET_TENSOR,
        Command.GRAPH_COMPUTE,
        Command.GRAPH_RECOMPUTE,
        Command.FREE_BUFFER,
        Command.BUFFER_CLEAR,
        Command.INIT_TENSOR,
        Command.MEMSET_TENSOR,
    }
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What size a payload may have, and how much of it comes with the request; None: all of it."""

    minimum: int
    maximum: int
    head: int | None = None


def _exactly(size: int) -> Shape:
    return Shape(size, size)


REQUEST_SHAPES: Final[Mapping[int, Shape]] = {
    Command.ALLOC_BUFFER: _exactly(12),
    Command.GET_ALIGNMENT: _exactly(4),
    Command.GET_MAX_SIZE: _exactly(4),
    Command.BUFFER_GET_BASE: _exactly(8),
    Command.FREE_BUFFER: _exactly(8),
    Command.BUFFER_CLEAR: _exactly(9),
    Command.SET_TENSOR: Shape(SET_TENSOR_HEAD_BYTES, MAX_TENSOR_BYTES, SET_TENSOR_HEAD_BYTES),
    Command.SET_TENSOR_HASH: _exactly(TENSOR_BYTES + 16),
    Command.GET_TENSOR: _exactly(TENSOR_BYTES + 16),
    Command.COPY_TENSOR: _exactly(2 * TENSOR_BYTES),
    Command.GRAPH_COMPUTE: Shape(12, MAX_GRAPH_BYTES, 0),
    Command.GET_DEVICE_MEMORY: _exactly(4),
    Command.INIT_TENSOR: _exactly(TENSOR_BYTES),
    Command.GET_ALLOC_SIZE: _exactly(4 + 11 * TENSOR_BYTES),
    Command.HELLO: _exactly(CAPABILITY_BYTES),
    Command.DEVICE_COUNT: _exactly(0),
    Command.GRAPH_RECOMPUTE: _exactly(4),
    Command.MEMSET_TENSOR: _exactly(TENSOR_BYTES + 17),
}

# GET_TENSOR's reply is as long as its request says.
REPLY_BYTES: Final[Mapping[int, int]] = {
    Command.ALLOC_BUFFER: 16,
    Command.GET_ALIGNMENT: 8,
    Command.GET_MAX_SIZE: 8,
    Command.BUFFER_GET_BASE: 8,
    Command.SET_TENSOR_HASH: 1,
    Command.COPY_TENSOR: 1,
    Command.GET_DEVICE_MEMORY: 16,
    Command.GET_ALLOC_SIZE: 8,
    Command.HELLO: 4 + CAPABILITY_BYTES,
    Command.DEVICE_COUNT: 4,
}


# ------------------------------------------------------------------ parsing


@dataclass(frozen=True, slots=True)
class Request:
    """A request began: its payload's head (all of it, for most), and how many bytes of body follow as `Body` events."""

    command: int
    size: int
    head: bytes
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to `command`: whole in `head`, or for GET_TENSOR nothing of it, and a body."""

    command: int
    size: int
    head: bytes
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Body:
    """The next bytes of a body, a view of what was fed, and how many are still to come."""

    data: memoryview
    left: int


RequestEvent: TypeAlias = Request | Body
ReplyEvent: TypeAlias = Reply | Body

_NOTHING: Final = memoryview(b"")


class _Parser:
    """What both directions share: a head gathered to `_wanted` bytes, then a body passed through."""

    def __init__(self) -> None:
        self._fed = _NOTHING
        self._gathered = bytearray()
        self._wanted = 0
        self._body_left = 0

    @property
    def body_left(self) -> int:
        """Bytes of the present body that were not given out."""
        return self._body_left

    @property
    def is_between(self) -> bool:
        """Whether everything fed was given out and no request or reply is cut: here the connection may end."""
        return not self._fed and not self._gathered and not self._body_left

    def feed(self, data: bytes | memoryview) -> None:
        """What arrived, in any split. What is left of earlier feeds is kept, so drain the events in between."""
        self._fed = memoryview(bytes(self._fed) + data) if self._fed else memoryview(data)

    def take_fed(self) -> memoryview:
        """Everything that was fed and not looked at, as it came: what follows is nothing for this parser."""
        taken, self._fed = self._fed, _NOTHING
        return taken

    def take_body(self) -> memoryview:
        """The rest of what was fed of the present body, for one who reads the rest itself and then says so (`skip_body`)."""
        piece = self._take(self._body_left)
        self._body_left -= len(piece)
        return piece

    def skip_body(self, count: int) -> None:
        """So many bytes of the present body were read elsewhere."""
        if not 0 <= count <= self._body_left:
            raise ValueError(f"{count} bytes of {self._body_left} cannot be skipped")
        self._body_left -= count

    def _take(self, count: int) -> memoryview:
        piece, self._fed = self._fed[:count], self._fed[count:]
        return piece

    def _gather(self) -> bool:
        """Whether the head is together."""
        missing = self._wanted - len(self._gathered)
        if missing > 0:
            self._gathered += self._take(missing)
        return len(self._gathered) >= self._wanted

    def _next_body(self) -> Body | None:
        if not self._fed:
            return None
        piece = self.take_body()
        return Body(piece, self._body_left)


class RequestParser(_Parser):
    """Requests, from bytes in any split. `shapes` says which commands there are.

    Raises (from `next_event`):
        ProtocolError: an unknown command, or a size that the command cannot have. The parser is then of no further use.
    """

    def __init__(self, shapes: Mapping[int, Shape] = REQUEST_SHAPES) -> None:
        super().__init__()
        self._shapes = shapes
        self._wanted = REQUEST_HEAD_BYTES
        self._begun: tuple[int, int] | None = None

    def next_event(self) -> RequestEvent | None:
        """The next one, or None until more is fed."""
        if self._body_left:
            return self._next_body()
        if not self._gather():
            return None
        if self._begun is None:
            command, size = self._gathered[0], int.from_bytes(self._gathered[1:REQUEST_HEAD_BYTES], "little")
            shape = self._shapes.get(command)
            if shape is None:
                raise ProtocolError(f"The RPC protocol has no command {command}.")
            if not shape.minimum <= size <= shape.maximum:
                raise ProtocolError(f"The RPC command {command} cannot have {size} bytes.")
            self._begun = command, size
            self._wanted += size if shape.head is None else shape.head
            if not self._gather():
                return None
        command, size = self._begun
        head = bytes(self._gathered[REQUEST_HEAD_BYTES:])
        self._gathered.clear()
        self._begun, self._wanted = None, REQUEST_HEAD_BYTES
        self._body_left = size - len(head)
        return Request(command, size, head, self._body_left)


class ReplyParser(_Parser):
    """Replies, in the order of the requests that were announced with `expect`.

    Raises (from `next_event`):
        ProtocolError: a reply that nobody asked for, or of the wrong size.
    """

    def __init__(self) -> None:
        super().__init__()
        self._wanted = REPLY_HEAD_BYTES
        self._expected: deque[tuple[int, int]] = deque()
        self._size: int | None = None

    @property
    def outstanding(self) -> int:
        """Replies that did not begin to arrive."""
        return len(self._expected)

    def expect(self, command: int, size: int) -> None:
        """A request of this kind was sent; its reply has `size` bytes. Raises: ProtocolError: too many at once."""
        if len(self._expected) >= MAX_OUTSTANDING_REPLIES:
            raise ProtocolError("More RPC requests wait for their replies than llama.cpp ever sends.")
        self._expected.append((command, size))

    def next_event(self) -> ReplyEvent | None:
        """The next one, or None until more is fed."""
        if self._body_left:
            return self._next_body()
        if self._fed and not self._expected:
            raise ProtocolError("An RPC reply came that nobody asked for.")
        if not self._gather():
            return None
        command, expected = self._expected[0]
        if self._size is None:
            self._size = int.from_bytes(self._gathered[:REPLY_HEAD_BYTES], "little")
            if self._size != expected:
                raise ProtocolError(f"The reply to the RPC command {command} has {self._size} bytes, not {expected}.")
            self._wanted += self._size if command in REPLY_BYTES else 0
            if not self._gather():
                return None
        head = bytes(self._gathered[REPLY_HEAD_BYTES:])
        self._expected.popleft()
        self._gathered.clear()
        self._size, self._wanted = None, REPLY_HEAD_BYTES
        self._body_left = expected - len(head)
        return Reply(command, expected, head, self._body_left)


def reply_size(request: Request) -> int | None:
    """How long its reply will be; None: it has none."""
    if request.command in WITHOUT_REPLY:
        return None
    if request.command == Command.GET_TENSOR:
        return int.from_bytes(request.head[TENSOR_BYTES + 8 : TENSOR_BYTES + 16], "little")
    return REPLY_BYTES[request.command]


# ------------------------------------------------------------------ building


def request_head(command: int, size: int) -> bytes:
    """What stands before a payload of `size` bytes."""
    return command.to_bytes(1, "little") + size.to_bytes(8, "little")


def build_request(command: int, payload: bytes = b"") -> bytes:
    """A whole request."""
    return request_head(command, len(payload)) + payload


def build_reply(payload: bytes) -> bytes:
    """A whole reply."""
    return len(payload).to_bytes(REPLY_HEAD_BYTES, "little") + payload


def hello_request() -> bytes:
    """HELLO without any capability: the connection stays on TCP."""
    return build_request(Command.HELLO, bytes(CAPABILITY_BYTES))


def hello_reply(version: tuple[int, int, int]) -> bytes:
    """The answer of a server of this version without any capability."""
    return build_reply(bytes(version).ljust(4 + CAPABILITY_BYTES, b"\0"))


def is_known(version: tuple[int, int, int]) -> bool:
    """Whether this module reads what such a server speaks. The patch number follows the operators, which are not looked at."""
    return version[0] == PROTOCOL_MAJOR and version[1] <= PROTOCOL_MINOR
