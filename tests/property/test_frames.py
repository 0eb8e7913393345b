"""Properties of framing: any split gives the same frames, and no bytes do anything but frames or ProtocolError."""

from __future__ import annotations

from typing import get_args, get_type_hints

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.frames import LENGTH_BYTES, FrameReader, MessageReader, encode_frame, encode_message
from agentmesh.mesh.logic.messages import KNOWN_TAGS, AnyMessage
from agentmesh.mesh.streams import StreamHeader

bodies = st.lists(st.binary(min_size=1, max_size=200), max_size=8)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of the given sizes, over and over."""
    pieces: list[bytes] = []
    position = number = 0
    while position < len(data):
        size = sizes[number % len(sizes)]
        pieces.append(data[position : position + size])
        position += size
        number += 1
    return pieces


def drain(reader: FrameReader) -> list[bytes]:
    frames: list[bytes] = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    return frames


@given(bodies, st.lists(st.integers(1, 50), min_size=1, max_size=10), st.binary(max_size=3))
def test_frames_are_the_same_whole_in_pieces_and_byte_by_byte(
    expected: list[bytes], sizes: list[int], tail: bytes
) -> None:
    data = b"".join(encode_frame(body) for body in expected) + tail
    for pieces in ([data], cut(data, sizes), cut(data, [1])):
        reader = FrameReader()
        found: list[bytes] = []
        for piece in pieces:
            reader.feed(piece)
            found += drain(reader)
        assert found == expected
        assert reader.buffered_bytes == len(tail)


@given(st.lists(st.binary(max_size=64), max_size=10), st.integers(1, 64))
def test_any_bytes_give_frames_within_the_limit_or_a_protocol_error(pieces: list[bytes], limit: int) -> None:
    reader = FrameReader(limit=limit)
    fed = given_out = 0
    for piece in pieces:
        reader.feed(piece)
        fed += len(piece)
        try:
            frames = drain(reader)
        except ProtocolError:
            return
        assert all(0 < len(frame) <= limit for frame in frames)
        given_out += sum(len(frame) + LENGTH_BYTES for frame in frames)
        assert reader.buffered_bytes == fed - given_out < limit + LENGTH_BYTES


# Numbers of messages are whole and below 2**53; st.from_type alone would make others.
messages = st.one_of(
    st.builds(kind, **{name: st.integers(0, 2**53 - 1) for name, hint in get_type_hints(kind).items() if hint is int})
    for kind in get_args(AnyMessage)
)


@given(messages)
def test_every_message_survives_its_frame(message: AnyMessage) -> None:
    assert MessageReader().read(encode_message(message)[LENGTH_BYTES:]) == message


@given(st.binary(max_size=300))
def test_any_body_is_a_message_or_skipped_or_a_protocol_error(body: bytes) -> None:
    reader = MessageReader()
    try:
        message = reader.read(body)
    except ProtocolError:
        assert reader.skipped == 0
    else:
        assert (message is None) == (reader.skipped == 1)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.integers(-(2**63), 2**63 - 1).filter(lambda tag: tag not in KNOWN_TAGS), st.lists(json_like, max_size=5))
def test_any_message_with_an_unknown_tag_is_skipped(tag: int, rest: list[object]) -> None:
    reader = MessageReader()
    assert reader.read(msgspec.msgpack.encode([tag, *rest])) is None
    assert reader.skipped == 1


@given(st.text(max_size=20), st.integers(0, 2**32), st.lists(json_like, max_size=3))
def test_a_stream_header_ignores_what_later_versions_add(kind: str, version: int, more: list[object]) -> None:
    body = msgspec.msgpack.encode([kind, version, *more])
    assert msgspec.msgpack.Decoder(StreamHeader).decode(body) == StreamHeader(kind, version)
