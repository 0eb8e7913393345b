"""Finds the node of a home, or starts one in the background and waits until it answers.

Owns the client's side of starting: the start lock, the detached process, its readiness pipe, and the hand-over by a
newer client. What a node does once it runs is not known here; it is started as a command of its own.

The readiness pipe carries JSON lines: first `{"pid": N}`, then `{"ready": true, "notes": [...]}` or `{"error": {...}}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import agentmesh
from agentmesh.control.client import AsyncNodeClient, NodeClient
from agentmesh.control.errors import NodeLost, NodeSilent, error_from_response
from agentmesh.control.http1 import Query
from agentmesh.control.lock import FileLock, is_held, wait_until_free
from agentmesh.control.node_environment import node_environment
from agentmesh.control.tokens import join_tokens
from agentmesh.core.errors import AgentMeshError, HomeError, InvalidInput, NodeRunning, NoNode
from agentmesh.core.paths import Home

START_TIMEOUT_S: Final = 30.0  # a cold start takes 1 to 2 s on two cores; ten times that on a loaded machine
END_TIMEOUT_S: Final = 10.0  # a node leaves within 5 s
PROBE_TIMEOUT_S: Final = 10.0
# The longest that a command holds the start lock, and so how long others wait for it: a node that is there already answers
# or ends, one is started, one that was faster answers; each is asked. A node started by hand holds it until it answers, or
# waits for its mesh.
STARTER_TIMEOUT_S: Final = 3 * START_TIMEOUT_S + END_TIMEOUT_S + 4 * PROBE_TIMEOUT_S
NOTICE_AFTER_S: Final = 5.0  # of waiting without a word; a start on a busy machine takes less
LOOK_INTERVAL_S: Final = 0.25  # at a node that holds the home and does not answer yet, or is about to end
LOG_TAIL_LINES: Final = 5

Say = Callable[[str], None]


def say_on_stderr(text: str) -> None:
    """Where a thin client tells its user what it did besides what was asked."""
    print(f"agentmesh: {text}", file=sys.stderr, flush=True)


def ensure_node(home: Home, *, say: Say = say_on_stderr) -> NodeClient:
    """The client of the node that runs in this home, after starting one if there is none.

    Raises:
        NoNode: none runs and none could be started; the message says why.
        InvalidInput: `$AGENTMESH_JOIN` holds no usable token.
    """
    client, notice = NodeClient(home), _Notice(home, say)
    if _is_current(client):
        return client
    try:
        home.prepare()
        lock = FileLock.acquire(home.start_lock, NOTICE_AFTER_S)
        if lock is None:
            notice.waits()
            lock = FileLock.acquire(home.start_lock, STARTER_TIMEOUT_S - NOTICE_AFTER_S)
        if lock is None:
            if _is_current(client):  # whoever holds the lock was stopped (Ctrl-Z) when it had done its work
                return client
            raise NoNode(
                f"Another process has been starting a node in this home for too long; see {home.logs / 'node.log'}."
            )
        with lock:
            _ensure_while_locked(home, client, say, notice)
    except HomeError as error:
        raise NoNode(f"No node could be started. {error.message}") from error
    return client


async def ensure_node_async(home: Home, *, say: Say = say_on_stderr) -> AsyncNodeClient:
    """`ensure_node` for asyncio: the same waits, in a thread."""
    import asyncio

    await asyncio.to_thread(ensure_node, home, say=say)
    return AsyncNodeClient(home)


def request_with_node(
    home: Home,
    method: str,
    path: str,
    *,
    params: Query | None = None,
    json: object = None,
    timeout_s: float = 30.0,
    repeatable: bool = False,
    say: Say = say_on_stderr,
) -> dict[str, Any]:
    """One request to the home's node, started if need be.

    A request that met no node is sent once more; one that was sent when the node ended (which is what a hand-over looks
    like) only if it is `repeatable`: reads, and posts with an idempotency key.
    """
    client = ensure_node(home, say=say)
    try:
        return client.request(method, path, params=params, json=json, timeout_s=timeout_s)
    except NoNode as error:
        if isinstance(error, NodeSilent) or (isinstance(error, NodeLost) and not repeatable):
            raise
    client = ensure_node(home, say=say)
    return client.request(method, path, params=params, json=json, timeout_s=timeout_s)


def request_if_present(home: Home, method: str, path: str, *, say: Say = say_on_stderr) -> dict[str, Any] | None:
    """One request to the home's node; starts none, but waits for one that somebody is starting. None: it ended before it was asked.

    Raises:
        NoNode: none runs, or one that does not answer.
        NodeLost: one was asked, and ended.
    """
    client = NodeClient(home)
    began, seen, notice = time.monotonic(), False, _Notice(home, say)
    while True:
        try:
            return client.request(method, path)
        except NoNode as error:
            if type(error) is not NoNode:  # it is there but silent, or somebody else's, or has just ended
                raise
            if not is_changing(home):
                if seen:
                    return None
                raise
            waited_s = time.monotonic() - began
            if waited_s >= START_TIMEOUT_S:
                raise _unanswering(home) from error
            if waited_s >= NOTICE_AFTER_S:
                notice.waits()
        seen = True
        time.sleep(LOOK_INTERVAL_S)


def is_changing(home: Home) -> bool:
    """Whether a node, though none answers, is being started in this home, or starts or ends."""
    return is_held(home.lock) or is_held(home.start_lock)


class _Notice:
    """What a command that waits long says, once."""

    def __init__(self, home: Home, say: Say) -> None:
        self._text = f"waiting for the node of {home.root}, which starts, looks for its mesh, or ends"
        self._say, self._said = say, False

    def waits(self) -> None:
        if not self._said:
            self._said = True
            self._say(self._text)


def _unanswering(home: Home) -> NoNode:
    return NoNode(
        f"The node of {home.root} does not answer; it may still be looking for its mesh. Wait, or end it where it was started."
    )


async def request_with_node_async(
    home: Home,
    method: str,
    path: str,
    *,
    params: Query | None = None,
    json: object = None,
    timeout_s: float = 30.0,
    repeatable: bool = False,
    say: Say = say_on_stderr,
) -> dict[str, Any]:
    """`request_with_node` for asyncio. Asks the node at once and looks for one only when that fails: one round trip."""
    client = AsyncNodeClient(home)
    try:
        return await client.request(method, path, params=params, json=json, timeout_s=timeout_s)
    except NoNode as error:
        if isinstance(error, NodeSilent) or (isinstance(error, NodeLost) and not repeatable):
            raise
    await ensure_node_async(home, say=say)
    return await client.request(method, path, params=params, json=json, timeout_s=timeout_s)


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: `0.2.0rc1` is (0, 2, 0)."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


# ------------------------------------------------------------------ finding


def _probe(client: NodeClient) -> dict[str, Any] | None:
    """What the running node says of itself, or None when there is none. Raises NodeSilent when it hangs."""
    try:
        return client.request("GET", "/api/node", timeout_s=PROBE_TIMEOUT_S)
    except NodeSilent:
        raise
    except NoNode:
        return None


def _is_current(client: NodeClient) -> bool:
    """Whether a node runs that this client need not replace."""
    node = _probe(client)
    return node is not None and not _is_older(node)


def _is_older(node: Mapping[str, Any]) -> bool:
    """Whether this is a node in the background, of an older version than this client."""
    older = parse_version(str(node.get("version", ""))) < parse_version(agentmesh.__version__)
    return node.get("background") is True and older


def _ensure_while_locked(home: Home, client: NodeClient, say: Say, notice: _Notice) -> None:
    """Have a node answer that is not older. Takes at most `STARTER_TIMEOUT_S`."""
    if _is_current(client):  # another starter was faster
        return
    began, faster = time.monotonic(), None
    while _ends_before_it_answers(home, client, say, notice):
        if faster is not None and time.monotonic() - began >= START_TIMEOUT_S:
            raise NoNode(f"No node could be started: others began in {home.root}, and ended.") from faster
        try:
            _start(home, say)
        except NodeRunning as error:
            # A command that was interrupted while it started one left its node, which was faster to the home's lock.
            faster = error
        else:
            return


def _ends_before_it_answers(home: Home, client: NodeClient, say: Say, notice: _Notice) -> bool:
    """Whether no node holds this home any more, an older one because it was asked to hand over; False: one that this client
    can use answers.

    Raises:
        NoNode: one holds it and does neither.
    """
    began, asked = time.monotonic(), False
    deadline = began + START_TIMEOUT_S
    while not wait_until_free(home.lock, LOOK_INTERVAL_S):
        node = _probe(client)
        if node is not None and not _is_older(node):
            return False
        if node is not None and not asked:
            say("the node in the background is older than this command; it hands over to a new one")
            with contextlib.suppress(NoNode):  # it may just be ending by itself
                client.request("POST", "/api/node/handover", timeout_s=PROBE_TIMEOUT_S)
            asked, deadline = True, time.monotonic() + END_TIMEOUT_S
        if time.monotonic() >= deadline:
            if asked:
                raise NoNode(
                    f"The older node of {home.root} was asked to hand over, but still runs. See: agentmesh stop"
                )
            raise _unanswering(home)
        if time.monotonic() - began >= NOTICE_AFTER_S and not asked:
            notice.waits()
    return True


# ------------------------------------------------------------------ starting


def _start(home: Home, say: Say) -> None:
    log = home.logs / "node.log"
    log_start = _size(log)
    deadline = time.monotonic() + START_TIMEOUT_S
    reading, writing = os.pipe()
    try:
        try:
            _spawn(home, log, writing)
        finally:
            os.close(writing)
        report, pid = await_report(reading, max(1.0, deadline - time.monotonic()))
    finally:
        os.close(reading)
    if report is not None and report.get("ready") is True:
        say(
            f"started a node in the background (process {pid}); it ends by itself when nobody used it for 48 hours. "
            "Stop it: agentmesh stop"
        )
        for note in cast("list[object]", report.get("notes") or []):
            say(str(note))
        return
    raise start_failure(report, log, log_start)


def _spawn(home: Home, log: Path, ready_fd: int) -> None:
    """Run the node's command detached: own session, no terminal, output to its log, at home in its home."""
    # -P: the home is the working directory and must not be a place to import modules from.
    command = [sys.executable, "-P", "-m", "agentmesh", "--background", "--ready-fd", str(ready_fd)]
    tokens = join_tokens(())  # resolved here: `@FILE` is relative to this process's directory
    try:
        with (
            # Tokens go over stdin: a process's environment and arguments can be read as long as it lives.
            tempfile.TemporaryFile(dir=home.run) if tokens else Path(os.devnull).open("rb") as stdin,
            os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab") as output,
        ):
            if tokens:
                stdin.write("\n".join(tokens).encode("utf-8"))
                stdin.seek(0)
                command += ["--join", "-"]
            starter = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=output,
                cwd=home.root,
                env=node_environment(os.environ, home),
                start_new_session=True,
                pass_fds=(ready_fd,),
            )
        # It forks the node off and ends at once, so that the node is nobody's child and leaves no zombie here.
        starter.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        starter.kill()  # pyright: ignore[reportPossiblyUnboundVariable]: only wait() raises this
        starter.wait()  # pyright: ignore[reportPossiblyUnboundVariable]
        raise NoNode("No node could be started: its process hangs at its start.") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        raise NoNode(f"No node could be started. {where}{error.strerror or error}.") from error


def await_report(reading: int, timeout_s: float = START_TIMEOUT_S) -> tuple[dict[str, Any] | None, int | None]:
    """The node's report and process id; the report is None when it ended without one.

    Raises:
        NoNode: it neither reports nor ends.
    """
    deadline = time.monotonic() + timeout_s
    buffer, pid = b"", None
    while (remaining := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reading], [], [], remaining)
        if not ready:
            break
        data = os.read(reading, 65536)
        if not data:
            return None, pid
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            report = cast("dict[str, Any]", json.loads(line))
            if "pid" not in report:
                return report, pid
            pid = int(report["pid"])
    who = f"process {pid}" if pid is not None else "its process is not known yet"
    raise NoNode(
        f"The node that was started ({who}) is not ready after {START_TIMEOUT_S:.0f} s, and goes on. Try again."
    )


def start_failure(report: dict[str, Any] | None, log: Path, log_start: int) -> AgentMeshError:
    if report is not None:
        error = error_from_response(500, report)
        if isinstance(error, InvalidInput | NodeRunning | NoNode):
            return error
        return NoNode(f"No node could be started. {error.message}")
    tail = _tail(log, log_start)
    return NoNode("No node could be started" + (f"; its log ends with:\n{tail}" if tail else f"; see {log}."))


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _tail(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])
