"""llama.cpp's RPC protocol: whatever the split, the same requests and replies; whatever the sizes, no memory for what is only claimed."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentmesh.core.errors import ProtocolError
from agentmesh.inference.logic.rpc_deflate import DeflateChoice, Deflater, Inflater
from agentmesh.inference.logic.rpc_limits import INFLATE_BLOCK_BYTES, MAX_PIECE_BYTES
from agentmesh.inference.logic.rpc_stream import STREAM_SHAPES, RelayCommand
from agentmesh.inference.logic.rpc_tensor import Tensor, build_tensor
from agentmesh.inference.logic.rpc_wire import (
    REPLY_BYTES,
    REQUEST_SHAPES,
    WITHOUT_REPLY,
    Body,
    Command,
    Reply,
    ReplyParser,
    Request,
    RequestParser,
    build_reply,
    build_request,
    reply_size,
)

commands = st.sampled_from(sorted(REQUEST_SHAPES))


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, bytes]:
    """A command and a payload of a size that it may have."""
    command = draw(commands)
    shape = REQUEST_SHAPES[command]
    size = shape.minimum if shape.maximum == shape.minimum else shape.minimum + draw(st.integers(0, 600))
    return command, draw(st.binary(min_size=16, max_size=16)).ljust(size, b"\7")[:size]


def read_requests(parser: RequestParser, pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """What the parser makes of it, with bodies put together."""
    result: list[tuple[int, bytes]] = []
    for piece in pieces:
        parser.feed(piece)
        while event := parser.next_event():
            if isinstance(event, Request):
                assert event.size == len(event.head) + event.body_bytes
                result.append((event.command, event.head))
            else:
                assert event.data
                result[-1] = (result[-1][0], result[-1][1] + bytes(event.data))
                assert event.left == parser.body_left
    return result


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.lists(requests(), max_size=6), st.data())
def test_requests_are_the_same_whole_byte_by_byte_and_in_any_split(
    sent: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    wire = b"".join(build_request(*request) for request in sent)
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))], data.draw(split(wire))):
        parser = RequestParser()
        assert read_requests(parser, pieces) == sent
        assert parser.is_between


@given(st.lists(requests(), min_size=1, max_size=3), st.integers(1, 8))
def test_a_cut_stream_is_not_between_requests(sent: list[tuple[int, bytes]], missing: int) -> None:
    parser = RequestParser()
    read_requests(parser, [b"".join(build_request(*request) for request in sent)[:-missing]])
    assert not parser.is_between


@given(commands, st.integers(0, 2**64 - 1))
@example(Command.SET_TENSOR, 2**64 - 1)
@example(Command.GRAPH_COMPUTE, 2**63)
@example(Command.SET_TENSOR, 304)
def test_a_size_that_a_command_cannot_have_is_refused_as_soon_as_it_is_read(command: int, size: int) -> None:
    shape = REQUEST_SHAPES[command]
    parser = RequestParser()
    parser.feed(command.to_bytes(1, "little") + size.to_bytes(8, "little"))
    if shape.minimum <= size <= shape.maximum:
        parser.next_event()
    else:
        with pytest.raises(ProtocolError):
            parser.next_event()


@given(st.integers(0, 255), st.sampled_from([REQUEST_SHAPES, STREAM_SHAPES]))
def test_an_unknown_command_is_refused(command: int, shapes: dict[int, object]) -> None:
    parser = RequestParser(shapes)  # type: ignore[arg-type]
    parser.feed(command.to_bytes(1, "little") + bytes(8))
    if command in shapes:
        try:
            parser.next_event()
        except ProtocolError as error:
            assert "cannot have 0 bytes" in error.message
    else:
        with pytest.raises(ProtocolError, match="no command"):
            parser.next_event()


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    parser = RequestParser()
    parser.feed(data)
    try:
        while parser.next_event():
            pass
    except ProtocolError:
        return


def test_a_claimed_terabyte_takes_no_memory() -> None:
    head = Command.SET_TENSOR.to_bytes(1, "little") + (1 << 40).to_bytes(8, "little") + bytes(305)
    parser = RequestParser()
    tracemalloc.start()
    try:
        parser.feed(head)
        block = bytes(1 << 20)
        for _ in range(64):
            parser.feed(block)
            while parser.next_event():
                pass
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_the_views_of_a_body_are_what_was_fed_and_no_copies() -> None:
    fed = build_request(Command.SET_TENSOR, bytes(305) + b"x" * 1000)
    parser = RequestParser()
    parser.feed(fed)
    parser.next_event()
    body = parser.next_event()
    assert isinstance(body, Body)
    assert body.data.obj is fed


def test_a_body_may_be_read_elsewhere() -> None:
    parser = RequestParser()
    parser.feed(build_request(Command.SET_TENSOR, bytes(305) + b"x" * 1000)[:-900])
    parser.next_event()
    assert bytes(parser.take_body()) == b"x" * 100
    with pytest.raises(ValueError):
        parser.skip_body(901)
    parser.skip_body(900)
    assert parser.is_between
    assert read_requests(parser, [build_request(Command.DEVICE_COUNT)]) == [(Command.DEVICE_COUNT, b"")]


# ------------------------------------------------------------------ replies


@given(st.lists(st.tuples(st.sampled_from(sorted(REPLY_BYTES)), st.binary(max_size=28)), max_size=6), st.data())
def test_replies_are_the_same_in_any_split(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    replies = [(command, text.ljust(REPLY_BYTES[command], b"\1")[: REPLY_BYTES[command]]) for command, text in sent]
    replies.append((Command.GET_TENSOR, data.draw(st.binary(max_size=300))))
    wire = b"".join(build_reply(payload) for _, payload in replies)
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))], data.draw(split(wire))):
        parser = ReplyParser()
        for command, payload in replies:
            parser.expect(command, len(payload))
        got: list[tuple[int, bytes]] = []
        for piece in pieces:
            parser.feed(piece)
            while event := parser.next_event():
                if isinstance(event, Reply):
                    got.append((event.command, event.head))
                else:
                    got[-1] = (got[-1][0], got[-1][1] + bytes(event.data))
        assert got == replies
        assert parser.is_between
        assert parser.outstanding == 0


@given(st.integers(0, 2**64 - 1))
def test_a_reply_of_another_size_is_refused(size: int) -> None:
    parser = ReplyParser()
    parser.expect(Command.ALLOC_BUFFER, 16)
    parser.feed(size.to_bytes(8, "little"))
    if size != 16:
        with pytest.raises(ProtocolError):
            parser.next_event()


def test_a_reply_that_nobody_asked_for_is_refused() -> None:
    parser = ReplyParser()
    parser.feed(b"\1")
    with pytest.raises(ProtocolError):
        parser.next_event()


def test_every_command_has_a_reply_of_known_size_or_none() -> None:
    for command in Command:
        shape = REQUEST_SHAPES[command]
        request = Request(command, shape.minimum, bytes(shape.minimum), 0)
        assert (reply_size(request) is None) == (command in WITHOUT_REPLY)


def test_a_tensors_fields_are_where_llama_cpp_puts_them() -> None:
    payload = bytearray(build_tensor("blk.0.ffn_up.weight", 8, (64, 2, 3), id_=7, buffer=9, data=0x1234))
    payload[36:40] = (68).to_bytes(4, "little")
    tensor = Tensor(bytes(payload))
    assert (tensor.id, tensor.type_number, tensor.buffer, tensor.data) == (7, 8, 9, 0x1234)
    assert (tensor.shape, tensor.strides[0], tensor.name) == ((64, 2, 3, 1), 68, "blk.0.ffn_up.weight")
    assert tensor.size_bytes == 64 * 2 * 3 // 32 * 34
    assert payload[228:247] == b"blk.0.ffn_up.weight"
    assert len(payload) == 296


def test_a_tensor_that_cannot_be_has_no_size_and_no_name() -> None:
    assert Tensor(build_tensor("x", 8, (33,))).size_bytes is None
    assert Tensor(build_tensor("x", 99, (32,))).size_bytes is None
    assert Tensor(build_tensor("", 0, (1,))[:228] + b"\xff" * 68).name is None
    with pytest.raises(ProtocolError):
        Tensor(bytes(295))


# ------------------------------------------------------------------ deflated requests


def inflate(wire: list[bytes], size: int) -> bytes:
    parser, inflater, result = RequestParser(STREAM_SHAPES), Inflater(size), b""
    for piece in wire:
        parser.feed(piece)
        event = parser.next_event()
        assert isinstance(event, Request)
        if event.command == RelayCommand.DEFLATED_PIECE:
            assert event.size <= MAX_PIECE_BYTES
            for block in inflater.feed(event.head):
                assert len(block) <= INFLATE_BLOCK_BYTES
                result += block
    assert inflater.left == 0
    return result


@given(st.lists(st.one_of(st.binary(max_size=3000), st.integers(1, 300_000).map(bytes)), min_size=1, max_size=4))
def test_what_was_deflated_comes_back(parts: list[bytes]) -> None:
    payload = b"".join(parts)
    if not payload:
        return
    deflater = Deflater(Command.GRAPH_COMPUTE, len(payload))
    wire = [deflater.announcement]
    for part in parts:
        wire += deflater.pieces(part)
    assert inflate(wire, len(payload)) == payload


@given(st.integers(1, 400_000), st.integers(0, 399_999))
def test_more_or_less_than_was_announced_is_refused(size: int, announced: int) -> None:
    deflater = Deflater(Command.SET_TENSOR, size)
    wire = list(deflater.pieces(bytes(size)))
    inflater = Inflater(announced)
    try:
        for piece in wire:
            for _ in inflater.feed(piece[9:]):
                pass
    except ProtocolError:
        assert size != announced
    else:
        assert size == announced


@given(st.binary(min_size=1, max_size=300))
def test_damaged_pieces_are_refused_or_waited_for(piece: bytes) -> None:
    inflater = Inflater(1000)
    try:
        assert sum(len(block) for block in inflater.feed(piece)) <= 1000
    except ProtocolError:
        return


def test_bytes_behind_the_end_of_a_deflated_request_are_refused() -> None:
    (piece,) = Deflater(Command.GRAPH_COMPUTE, 100).pieces(bytes(100))
    with pytest.raises(ProtocolError, match="more"):
        list(Inflater(100).feed(piece[9:] + b"x"))


def test_a_name_that_did_not_shrink_is_not_tried_again() -> None:
    choice = DeflateChoice(enabled=True)
    noise = bytes(range(256)) * 4
    assert choice.may(Command.SET_TENSOR, 8192, "l_out-3")
    assert not choice.is_worth("l_out-3", random.Random(1).randbytes(4096))
    assert not choice.may(Command.SET_TENSOR, 8192, "l_out-3")
    assert choice.may(Command.SET_TENSOR, 8192, "KQ_mask")
    assert choice.is_worth("KQ_mask", noise)


def test_small_requests_and_other_commands_and_loopback_are_not_deflated() -> None:
    assert not DeflateChoice(enabled=False).may(Command.GRAPH_COMPUTE, 1 << 20, None)
    assert not DeflateChoice(enabled=True).may(Command.GRAPH_COMPUTE, 4000, None)
    assert not DeflateChoice(enabled=True).may(Command.GET_ALLOC_SIZE, 1 << 20, None)
