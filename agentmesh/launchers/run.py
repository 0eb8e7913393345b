"""Runs the agent as a child that has the terminal, and passes signals and its end on.

Owns the child process and, meanwhile, the signal handlers of this one; and the connection that tells the node of the home
that somebody is there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.launchers.base import LauncherError

if TYPE_CHECKING:
    import asyncio

FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# The terminal sends these to the agent as well: it decides, we wait.
LEFT_TO_AGENT: Final = (signal.SIGINT, signal.SIGQUIT)
ATTACH_AGAIN_S: Final = 5.0
DETACH_TIMEOUT_S: Final = 2.0


def run_agent(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program until it ends; its exit code, 128 + n if signal n ended it.

    Raises:
        LauncherError: it cannot be started.
    """
    with _Signals() as signals:
        try:
            child = subprocess.Popen(list(argv), env=dict(environment))
        except OSError as error:
            raise LauncherError(f"{argv[0]} cannot be started: {error.strerror}.") from error
        signals.child = child.pid
        return _wait(child)


def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            # Ctrl-Z in the agent: the shell sees us, so stop too; when it continues us, the agent goes on.
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child.pid, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        child.returncode = code
        return code if code >= 0 else 128 - code


class _Signals:
    """The handlers while an agent runs. Functions, not SIG_IGN: a child would inherit that."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, object] = {}
        self._pending: list[int] = []
        self._child: int | None = None

    @property
    def child(self) -> int | None:
        return self._child

    @child.setter
    def child(self, pid: int) -> None:
        self._child = pid
        for number in self._pending:
            os.kill(pid, number)

    def __enter__(self) -> _Signals:
        # Where a parent ignored it, the kernel would keep no exit code for us.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (*FORWARDED, *LEFT_TO_AGENT):
            if signal.getsignal(number) != signal.SIG_IGN:  # else nohup: it stays so, for the agent too
                handler = self._forward if number in FORWARDED else self._leave
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]: what signal() gave

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self._pending.append(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _leave(self, _number: int, _frame: FrameType | None) -> None:
        return


class Interrupted(AgentMeshError):
    """Ended before the agent ran."""

    exit_code = 128 + signal.SIGTERM


class HungUp(Interrupted):
    """Its terminal was closed before the agent ran."""

    exit_code = 128 + signal.SIGHUP


@contextlib.contextmanager
def tidy_end() -> Generator[None]:
    """Make an error of SIGTERM and SIGHUP, so that what was started is ended; while the agent runs, they are its."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise HungUp if number == signal.SIGHUP else Interrupted

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, end)
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def put_off() -> Generator[None]:
    """What would break this off waits for its end: a node that is being started must be known to be ended again.

    A second signal does not wait. Handlers, not a blocked mask: the node would inherit that.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    pending: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        if pending and callable(handler):
            handler(number, frame)
        pending.append(number)

    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
        if pending:  # also when it failed: whoever interrupted it wants no reason, and a script its exit code
            signal.raise_signal(pending[0])


# ------------------------------------------------------------------ being there


@contextlib.contextmanager
def attached(home: Home | None) -> Generator[None]:
    """Keep a connection to the home's node open, so that it knows of a client and does not end for want of one.

    With None nothing is done. A node that hands over is found again.
    """
    if home is None:
        yield
        return
    attachment = _Attachment(home)
    thread = threading.Thread(target=attachment.run, name="attached", daemon=True)
    thread.start()
    try:
        yield
    finally:
        attachment.end()
        thread.join(DETACH_TIMEOUT_S)


class _Attachment:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: asyncio.Timeout | None = None

    def run(self) -> None:
        import asyncio

        while not self._ended.is_set():
            with contextlib.suppress(AgentMeshError, OSError):  # the agent has the terminal: nothing may be printed
                asyncio.run(self._follow())
            self._ended.wait(ATTACH_AGAIN_S)

    async def _follow(self) -> None:
        import asyncio

        from agentmesh.control.client import AsyncNodeClient

        async with asyncio.timeout(None) as scope:
            with self._lock:
                if self._ended.is_set():
                    return
                self._loop, self._scope = asyncio.get_running_loop(), scope
            async with contextlib.aclosing(AsyncNodeClient(self._home).stream_events("/api/events")) as events:
                async for _ in events:
                    pass

    def end(self) -> None:
        with self._lock:
            self._ended.set()
            loop, scope = self._loop, self._scope
        if loop is not None and scope is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it ended by itself
                loop.call_soon_threadsafe(_expire, loop, scope)


def _expire(loop: asyncio.AbstractEventLoop, scope: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # it has been left already
        scope.reschedule(loop.time())
