"""What a relay did, for status, metrics and whoever watches for a stall. Owner: the event loop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from agentmesh.inference.logic.rpc_stream import RelayCommand
from agentmesh.inference.logic.rpc_wire import Command


@dataclass(slots=True)
class CommandCount:
    """Of one command. Bytes with their heads.

    Attributes:
        requests: how many came from llama-server (gateway) or from the stream (exit).
        answered_here: of those, how many needed nothing of the far side.
        round_trips: how many waited for a reply of the far side.
        in_bytes: what came in as requests.
        out_bytes: what went on for them; a reference counts as FILE_TENSOR.
        reply_bytes: what came back.
    """

    requests: int = 0
    answered_here: int = 0
    round_trips: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    reply_bytes: int = 0


class RelayCounters:
    """All connections of one gateway or job, since it began.

    Attributes:
        blind_bytes: relayed without being understood, both ways.
        referenced_bytes: of weights that stayed where they were because the worker has them.
        streams: mesh streams that were opened.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_command: dict[int, CommandCount] = {}
        self._waiting_since_s: float | None = None
        self._writing_since_s: float | None = None
        self.blind_bytes = 0
        self.referenced_bytes = 0
        self.streams = 0

    def of(self, command: int) -> CommandCount:
        """The counts of one command."""
        count = self._by_command.get(command)
        if count is None:
            count = self._by_command[command] = CommandCount()
        return count

    def by_name(self) -> dict[str, CommandCount]:
        """The counts of every command that came, by its name in lower case."""
        return {_name(command): count for command, count in sorted(self._by_command.items())}

    @property
    def in_bytes(self) -> int:
        """All that came in as requests."""
        return sum(count.in_bytes for count in self._by_command.values())

    @property
    def out_bytes(self) -> int:
        """All that went on as requests."""
        return sum(count.out_bytes for count in self._by_command.values())

    @property
    def reply_bytes(self) -> int:
        """All that came back as replies."""
        return sum(count.reply_bytes for count in self._by_command.values())

    @property
    def round_trips(self) -> int:
        """All requests that waited for the far side."""
        return sum(count.round_trips for count in self._by_command.values())

    @property
    def overdue_s(self) -> float:
        """How long the far side has let a reply wait without sending anything, or not taken a request; 0: neither."""
        since_s = [each for each in (self._waiting_since_s, self._writing_since_s) if each is not None]
        return self._clock() - min(since_s) if since_s else 0.0

    def asked(self) -> None:
        """A reply is awaited now."""
        if self._waiting_since_s is None:
            self._waiting_since_s = self._clock()

    @contextmanager
    def writing(self) -> Generator[None]:
        """While a request is on its way to the far side."""
        self._writing_since_s = self._clock()
        try:
            yield
        finally:
            self._writing_since_s = None

    def heard(self, outstanding: int) -> None:
        """Something of a reply came; so many are still awaited."""
        self._waiting_since_s = self._clock() if outstanding else None


def _name(command: int) -> str:
    try:
        return (Command(command) if command in Command.__members__.values() else RelayCommand(command)).name.lower()
    except ValueError:
        return str(command)
