"""The node's doors: the Unix socket in its home and the console port on loopback, each served by uvicorn on our loop.

Owns binding, permissions and the end of the servers. Knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Final, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from agentmesh.console.guard import App
from agentmesh.core.errors import HomeError, PortInUse
from agentmesh.core.tasks import TaskSet

_log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
PORTS_TRIED: Final = 50  # beyond a busy default: as many nodes on one machine, then something is wrong
MAX_CONNECTIONS: Final = 512  # per door: hundreds of agents with an event stream each
BACKLOG: Final = 1024  # who comes in one burst, such as twenty agents with their editors; the system may allow less
REQUEST_GRACE_S: Final = 1  # what a running request gets to finish when the node stops
KEEP_ALIVE_S: Final = 30
SILENCE_S: Final = 15.0  # to send a whole request, or the next one: ours take milliseconds
MAX_HEAD_BYTES: Final = 32 * 1024  # of a request; browsers stay below 16 KiB


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (they are the node's) and without its ten wake-ups a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        await self.ended.wait()


class _Connection(H11Protocol):
    """uvicorn's connection with a bound on how many there are and how long one may be there without a request.

    uvicorn times out only what is silent after a whole answer: a connection that never sends anything, or half a request,
    would stay for ever, and other users of the machine could take all our descriptors at the console port. h11 on purpose,
    also where httptools is installed: one strict parser on every machine.
    """

    _seen: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]: as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch = self.loop.call_later(SILENCE_S, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if hasattr(self, "_watch"):
            self._watch.cancel()

    def _close_if_idle(self) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if (cycle is None or cycle.response_complete) and cycle is self._seen:
            self.transport.close()
            return
        self._seen = cycle
        self._watch = self.loop.call_later(SILENCE_S, self._close_if_idle)


class ApiServer:
    """An ASGI app served on one bound socket."""

    def __init__(self, app: App, bound: socket.socket, tasks: TaskSet, name: str) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=REQUEST_GRACE_S,
        )
        self._server = _Server(config)
        self._task = tasks.spawn(self._server.serve(sockets=[bound]), name=f"serve-{name}")

    def connections(self) -> int:
        """Open connections."""
        return len(self._server.server_state.connections)

    async def close(self, timeout_s: float) -> None:
        """Stop listening, let requests end for a moment, drop the rest."""
        self._server.ended.set()
        _, pending = await asyncio.wait([self._task], timeout=timeout_s)
        if pending:
            _log.warning("requests still run after %s s and are dropped", timeout_s)
            self._task.cancel()
        for connection in list(self._server.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        await asyncio.sleep(0)


def bind_home_socket(path: Path) -> socket.socket:
    """Listen on the home's socket, mode 0600, in a folder that is ours alone. Only the holder of the home's lock may call this.

    Raises:
        HomeError: the folder belongs to somebody else, or the socket cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in _ours_above(path.parent):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise HomeError(f"{folder} can be changed by other users; the node's socket is not put there.")
        path.unlink(missing_ok=True)  # a killed node left it: its lock is free, for we hold it
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.setblocking(False)
        previous = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(previous)
        bound.listen(BACKLOG)
    except OSError as error:
        raise HomeError(f"The socket {path} cannot be made: {error.strerror or error}.") from error
    return bound


def _ours_above(folder: Path) -> list[Path]:
    """The socket's folder, and the one above it when we made that one too, in a directory shared by everybody."""
    return [folder.parent, folder] if folder.name.startswith("agentmesh-") else [folder]


def bind_console(port: int, *, named: bool) -> socket.socket:
    """Listen on loopback; a busy port that the user did not name gives way to the next free one.

    Raises:
        PortInUse: the named port, or every port tried, is taken.
    """
    return _bind(port, named, LOOPBACK, "--console")


def bind_api(port: int, *, named: bool, everywhere: bool) -> socket.socket:
    """Listen for the model API on loopback, or on every interface.

    Raises:
        PortInUse: as bind_console.
    """
    return _bind(port, named, "" if everywhere else LOOPBACK, "--port")


def _bind(port: int, named: bool, host: str, option: str) -> socket.socket:
    candidates = [port] if named or port == 0 else [*range(port, min(port + PORTS_TRIED, 65536))]
    for candidate in candidates:
        bound = _try_bind(host, candidate)
        if bound is not None:
            return bound
    if len(candidates) == 1:
        raise PortInUse(f"Port {port} is in use by another program; give another with {option}.")
    raise PortInUse(f"The ports {candidates[0]} to {candidates[-1]} are all in use; give one with {option}.")


def _try_bind(host: str, port: int) -> socket.socket | None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setblocking(False)
    # Without this a port stays closed for a minute after a node ended (TIME_WAIT); on Linux and macOS it steals no live one.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise PortInUse(f"Port {port} cannot be used: {error.strerror}.") from error
    return bound


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def free_udp_port(wanted: int) -> int:
    """`wanted` if it can be bound on every interface now, else 0: any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", wanted))
        except OSError:
            return 0
    return wanted
