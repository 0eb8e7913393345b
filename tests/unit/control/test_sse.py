"""Server-sent events, read as the standard says."""

from __future__ import annotations

import pytest

from agentmesh.control.http1 import BadResponse
from agentmesh.control.sse import MAX_EVENT_BYTES, EventParser, ServerEvent

WIRE = b': hello\n\nevent: post\nid: 7\ndata: {"a":\ndata: 1}\n\ndata:x\r\n\r\n\nevent: retracted\n\nevent: late\ndata: cut'
EVENTS = [ServerEvent("post", '{"a":\n1}', "7"), ServerEvent("message", "x", "7")]


def test_events_read_the_same_whole_and_byte_by_byte() -> None:
    whole, single = EventParser(), EventParser()
    assert whole.feed(WIRE) == EVENTS
    assert [event for i in range(len(WIRE)) for event in single.feed(WIRE[i : i + 1])] == EVENTS


def test_a_character_split_over_two_reads_survives() -> None:
    parser, wire = EventParser(), "data: grün\n\n".encode()
    cut = wire.index(b"\xc3") + 1
    assert parser.feed(wire[:cut]) + parser.feed(wire[cut:]) == [ServerEvent("message", "grün", "")]


def test_an_event_without_end_is_refused_before_it_fills_the_memory() -> None:
    parser = EventParser()
    with pytest.raises(BadResponse):
        for _ in range(MAX_EVENT_BYTES // 1000 + 2):
            parser.feed(b"data: " + b"x" * 1000 + b"\n")
