"""The node as a process: its lock, log, signals, what it prints, and how it ends.

Owns nothing that is on the mesh or the board; `Node` (runtime.py) does the work.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, TextIO

from agentmesh.core.config import Config, load_config
from agentmesh.core.errors import EXIT_DONE, EXIT_FAILED, AgentMeshError
from agentmesh.core.log import level_from_environment, redact, setup_logging
from agentmesh.core.paths import Home
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.logic.proxy_limits import GC_THRESHOLDS
from agentmesh.node.options import NodeOptions
from agentmesh.node.readiness import ReadyPipe
from agentmesh.node.takeover import HeldHome, take_home

if TYPE_CHECKING:
    from agentmesh.node.runtime import Node

_log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 5.0  # a clean leave; then the process ends as if it had been killed, which loses nothing either
# How long a thread may keep the interpreter when the event loop wants it (Python's default is 5 ms). Hashing, writing and
# scrubbing threads delayed each wake-up of the loop by 5.7 ms with the default and by 1.7 ms with this (measured).
SWITCH_INTERVAL_S: Final = 0.001
DESCRIPTORS: Final = 4096  # 512 connections at each of two doors, and room
IDLE_CHECKS: Final = 20  # looks at idleness within one idle_exit
IDLE_CHECK_MAX_S: Final = 60.0


def run_process(home: Home, options: NodeOptions) -> int:
    """Run a node until it is told to end; returns the exit code.

    Raises:
        AgentMeshError: the node could not start (in the foreground; in the background the starter is told).
    """
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _allow_descriptors()
    pipe = ReadyPipe(options.ready_fd)
    try:
        home.prepare()
        _set_up_log(home, options)
        config = load_config(home.config)
        held = take_home(home, background=options.background)
        try:
            _run_loop(home, options, config, held, pipe)
        finally:
            held.release()
        return EXIT_DONE
    except AgentMeshError as error:
        pipe.failed(error)
        if options.background:
            _log.error("%s", error.message)
            return error.exit_code
        raise


def _allow_descriptors() -> None:
    """Both doors may be full, and the database and a worker must still open files; many systems' default is 1,024 or 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_up_log(home: Home, options: NodeOptions) -> None:
    if options.background:
        os.chdir(home.root)
        setup_logging(level_from_environment("info"), home.logs / "node.log")
    else:
        setup_logging(level_from_environment())


def _run_loop(home: Home, options: NodeOptions, config: Config, held: HeldHome, pipe: ReadyPipe) -> None:
    main = _main(home, options, config, held, pipe)
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


async def _main(home: Home, options: NodeOptions, config: Config, held: HeldHome, pipe: ReadyPipe) -> None:
    with _without("pandas", "numpy"):
        from agentmesh.node.runtime import Node

    node: Node | None = Node(home, options, config)
    running = [node]

    def stop(reason: str) -> None:
        running[-1].request_stop(reason)

    _handle_signals(stop, background=options.background)
    while node is not None:
        running.append(node)
        watchdog = threading.Timer(STOP_TIMEOUT_S, _end_now)
        watchdog.daemon = True
        try:
            await _run(node, home, options, config, held, pipe)
        finally:
            watchdog.start()
            await node.stop()
            if node.successor is not None:
                watchdog.cancel()
        node = node.successor


async def _run(node: Node, home: Home, options: NodeOptions, config: Config, held: HeldHome, pipe: ReadyPipe) -> None:
    """Start, be there, return when the node is asked to stop."""
    tasks = TaskSet("process")
    try:
        stopping = tasks.spawn(node.stopping.wait(), name="stopping")
        starting = tasks.spawn(_start(node, held), name="start")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        if (failure := await starting) is not None:
            raise failure
        _announce(node, home, options, pipe)
        gc.set_threshold(*GC_THRESHOLDS)
        held.settled()
        if options.background:
            tasks.spawn(_end_when_unused(node, held, config.idle_exit_ms / 1000), name="idle")
        await stopping
        _log.info("stopping: %s", node.stop_reason)
    finally:
        await tasks.close(grace_s=1.0)


async def _start(node: Node, held: HeldHome) -> AgentMeshError | None:
    """Why the node cannot run, if it cannot: a sentence for the user, not a task that failed."""

    def say_that_it_takes_long(text: str) -> None:
        held.settled()  # thin clients need not wait for what may never come
        _say(sys.stderr, text)

    try:
        await node.start(say_that_it_takes_long)
    except AgentMeshError as error:
        return error
    return None


def _end_now() -> None:
    """Runs in a thread of its own: also when the event loop hangs, or a thread waits for a name server at exit."""
    _log.error("the node did not end within %s s and is cut off; nothing that was acknowledged is lost", STOP_TIMEOUT_S)
    os._exit(EXIT_FAILED)


# ------------------------------------------------------------------ saying that it is there


def _announce(node: Node, home: Home, options: NodeOptions, pipe: ReadyPipe) -> None:
    for note in node.notes:
        _say(sys.stderr, note)
    if not options.background:
        key = ", with a key" if options.api_keys else ""
        where = ", for other machines at this one's addresses" if options.listen_all else ""
        _say(sys.stderr, f"models:  http://127.0.0.1:{node.api_port}/v1 (OpenAI and Anthropic API{key}{where})")
        _say(sys.stderr, f"console: http://127.0.0.1:{node.console_port}/ (its token is in {home.node_json})")
        _say(sys.stderr, f"other nodes: UDP port {node.bind_port}")
        if node.invite_token is not None:
            _say(sys.stdout, f"Invite: {node.invite_token}", secret=True)
    pipe.ready(node.notes)


def _say(stream: TextIO, text: str, *, secret: bool = False) -> None:
    """Print a line. Whoever read it may be gone: that is no reason for a node to end."""
    try:
        print(text if secret else redact(text), file=stream, flush=True)
    except OSError as error:
        _log.info("output is closed: %s", error)


# ------------------------------------------------------------------ ending


def _handle_signals(request_stop: Callable[[str], None], *, background: bool) -> None:
    """The first signal leaves cleanly, a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def received(number: signal.Signals) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(128 + number)
        request_stop(number.name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, received, number)
    if background:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it has no terminal to lose
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        loop.add_signal_handler(signal.SIGHUP, received, signal.SIGHUP)


async def _end_when_unused(node: Node, held: HeldHome, idle_exit_s: float) -> None:
    """End a node in the background that nobody uses any more, or whose home was deleted: nobody could find it."""
    while node.idle_s() < idle_exit_s:
        if not held.is_current():
            node.request_stop("its home is gone")
            return
        await asyncio.sleep(min(IDLE_CHECK_MAX_S, idle_exit_s / IDLE_CHECKS))
    node.request_stop("nobody used this node for so long")


@contextmanager
def _without(*packages: str) -> Generator[None, None, None]:
    """Make optional packages look absent while the node's modules are imported.

    sqlite-utils imports pandas where it finds it, and scrubadub (of the scrub worker) brings it: 48 MiB and 0.3 s that
    nothing here uses (measured, Python 3.11).
    """
    absent = [name for name in packages if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]: what import takes for "not there" (PEP 328)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
