"""Server-sent events as a stream of bytes in and events out (WHATWG HTML, "Server-sent events"). No I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

from agentmesh.control.http1 import BadResponse

MAX_EVENT_BYTES: Final = 1024 * 1024  # a post is at most 4 KiB; a larger event is not from our node


class ServerEvent(NamedTuple):
    """One event: its type (`message` when none is given), its data, and the id to resume from ("" when none)."""

    event: str
    data: str
    id: str


class EventParser:
    """Takes bytes as they come, gives the events they complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._id = ""

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Raises: BadResponse: an event is larger than our node sends."""
        self._buffer += data
        events: list[ServerEvent] = []
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            event = self._line(line.decode("utf-8", "replace"))
            if event is not None:
                events.append(event)
        if len(self._buffer) + self._data_bytes > MAX_EVENT_BYTES:
            raise BadResponse()
        return events

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data, self._data_bytes = "", [], 0
        return event
