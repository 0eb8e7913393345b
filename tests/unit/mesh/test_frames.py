"""Frames and messages: what is cut out of bytes, what is refused, what is skipped."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.frames import (
    LENGTH_BYTES,
    FrameReader,
    MessageReader,
    decode,
    encode_frame,
    encode_message,
)
from agentmesh.mesh.logic.limits import MAX_FRAME_BYTES
from agentmesh.mesh.logic.messages import KNOWN_TAGS, AnyMessage, Goodbye, IHave, PeerEntry, Ping, Pong, Prune, Shuffle


def body_of(frame: bytes) -> bytes:
    return frame[LENGTH_BYTES:]


def test_a_frame_is_a_big_endian_length_and_its_body() -> None:
    assert encode_frame(b"abc") == b"\x00\x00\x00\x03abc"


def test_nothing_comes_out_before_a_frame_is_whole() -> None:
    reader = FrameReader()
    reader.feed(b"\x00\x00\x00\x03ab")
    assert reader.next_frame() is None
    reader.feed(b"c")
    assert reader.next_frame() == b"abc"
    assert reader.next_frame() is None


def test_several_frames_fed_at_once_come_out_one_by_one() -> None:
    reader = FrameReader()
    reader.feed(encode_frame(b"one") + encode_frame(b"two") + b"\x00\x00")
    assert [reader.next_frame(), reader.next_frame(), reader.next_frame()] == [b"one", b"two", None]
    assert reader.buffered_bytes == 2


def test_a_length_over_the_limit_is_refused_from_its_prefix_alone() -> None:
    reader = FrameReader()
    reader.feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="at most"):
        reader.next_frame()


def test_a_frame_of_exactly_the_limit_passes() -> None:
    reader = FrameReader()
    reader.feed(encode_frame(bytes(MAX_FRAME_BYTES)))
    assert len(reader.next_frame() or b"") == MAX_FRAME_BYTES


def test_an_empty_frame_is_refused() -> None:
    reader = FrameReader()
    reader.feed(bytes(4))
    with pytest.raises(ProtocolError, match="empty"):
        reader.next_frame()


def test_an_end_between_frames_is_good_and_inside_one_is_not() -> None:
    reader = FrameReader()
    reader.feed(encode_frame(b"one"))
    assert reader.next_frame() == b"one"
    reader.end()
    reader.feed(b"\x00")
    with pytest.raises(ProtocolError, match="middle"):
        reader.end()


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1])
def test_our_own_frame_over_the_limit_is_a_mistake_of_ours(size: int) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        encode_frame(bytes(size))


def test_messages_come_back_as_they_were() -> None:
    entry = PeerEntry(b"n" * 32, ("127.0.0.1:1",), True)
    for message in (
        Ping(1, 2, 3),
        Pong(1, 2, 3),
        Prune(),
        IHave(b"i" * 32, 1),
        Shuffle(entry, (entry,), 3),
        Goodbye("x"),
    ):
        assert MessageReader().read(body_of(encode_message(message))) == message


def test_a_message_of_a_later_version_is_skipped_and_counted() -> None:
    reader = MessageReader()
    assert reader.read(msgspec.msgpack.encode([99, {"what": "ever"}, [1, [2]]])) is None
    assert reader.read(msgspec.msgpack.encode([5_000])) is None
    assert reader.skipped == 2


def test_elements_that_a_later_version_added_are_ignored() -> None:
    assert MessageReader().read(msgspec.msgpack.encode([40, "bye", "new", {"more": 1}])) == Goodbye("bye")


@pytest.mark.parametrize(
    "body",
    [
        msgspec.msgpack.encode([1, "two", 3, 4]),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode([1, 2, -1, 4]),
        msgspec.msgpack.encode([1, 2, 2**64 - 1, 4]),
        msgspec.msgpack.encode({"type": 1}),
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode(["one", 2, 3]),
        msgspec.msgpack.encode(7),
        msgspec.msgpack.encode([1, 2, 3, 4]) + b"\x00",
        msgspec.msgpack.encode([1, 2, 3, 4])[:-1],
        b"\xc1",
        b"\x92\x28\xa2\xff\xfe",  # Goodbye with a reason that is no UTF-8
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x28\xdb\xff\xff\xff\xff",
    ],
)
def test_a_malformed_message_is_a_protocol_error(body: bytes) -> None:
    reader = MessageReader()
    with pytest.raises(ProtocolError):
        reader.read(body)
    assert reader.skipped == 0


def test_deep_nesting_behind_an_unknown_tag_is_refused_and_not_fatal() -> None:
    with pytest.raises(ProtocolError):
        MessageReader().read(b"\x92\x63" + b"\x91" * 100_000 + b"\x01")


def test_a_struct_of_the_wrong_shape_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\xa1x", msgspec.msgpack.Decoder(int))


def test_the_known_tags_are_those_of_the_messages() -> None:
    tags = {message.__struct_config__.tag for message in AnyMessage.__args__}
    assert tags == KNOWN_TAGS
