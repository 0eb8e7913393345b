"""Becoming the node of a home: its lock, and what happens to the node that already holds it.

A node started by hand takes over from one in the background, which hands over and ends; beside another one started by hand
it refuses. Blocking on purpose: nothing of the node runs yet.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Final

from agentmesh.control.client import NodeClient
from agentmesh.control.errors import NodeSilent
from agentmesh.control.lock import FileLock
from agentmesh.control.start import END_TIMEOUT_S, PROBE_TIMEOUT_S, START_TIMEOUT_S, STARTER_TIMEOUT_S
from agentmesh.core.errors import NodeRunning, NoNode
from agentmesh.core.paths import Home
from agentmesh.node.node_file import read_node_file

_log = logging.getLogger(__name__)

# A client that looks whether the lock is free holds it for an instant.
GLANCE_S: Final = 0.5


class HeldHome:
    """The locks of the home's node. `settled()` lets other starters look again; `release()` frees the home."""

    def __init__(self, lock: FileLock, starting: FileLock | None) -> None:
        self._lock = lock
        self._starting = starting

    def settled(self) -> None:
        """The node answers now (or gave up): whoever waits to start one may look."""
        if self._starting is not None:
            self._starting.release()
            self._starting = None

    def is_current(self) -> bool:
        """Whether the home is still there, and still this node's: it may have been deleted, and even made anew."""
        return self._lock.is_current()

    def release(self) -> None:
        self.settled()
        self._lock.release()


def take_home(home: Home, *, background: bool) -> HeldHome:
    """Become the node of this home.

    Raises:
        NodeRunning: another one is and stays; its process is named.
    """
    if background:  # whoever started this process holds the start lock
        lock = FileLock.acquire(home.lock, GLANCE_S)
        if lock is None:
            raise NodeRunning(_refusal(home))
        return _held(home, lock, None)
    starting = FileLock.acquire(home.start_lock, STARTER_TIMEOUT_S)
    if starting is None:
        raise NodeRunning("Another process has been starting a node in this home for too long.")
    try:
        return _held(home, _take_over(home), starting)
    except BaseException:
        starting.release()
        raise


def _held(home: Home, lock: FileLock, starting: FileLock | None) -> HeldHome:
    with contextlib.suppress(OSError):  # a killed node left it; its process id may be another program's by now
        home.node_json.unlink(missing_ok=True)
    return HeldHome(lock, starting)


def _take_over(home: Home) -> FileLock:
    deadline = time.monotonic() + START_TIMEOUT_S  # one that is starting in the background answers by then
    asked = False
    while (lock := FileLock.acquire(home.lock, GLANCE_S)) is None:
        if time.monotonic() >= deadline:
            raise NodeRunning(_refusal(home))
        if not asked and _asked_to_hand_over(home):
            asked, deadline = True, time.monotonic() + END_TIMEOUT_S
    return lock


def _asked_to_hand_over(home: Home) -> bool:
    """False: what holds the home does not listen: it starts, or ends.

    Raises:
        NodeRunning: somebody started it by hand, or it hangs.
    """
    client = NodeClient(home)
    try:
        running = client.request("GET", "/api/node", timeout_s=PROBE_TIMEOUT_S)
        if running.get("background") is not True:
            raise NodeRunning(_refusal(home))
        _log.info("taking over from the node in the background, process %s", running.get("pid"))
        client.request("POST", "/api/node/handover", timeout_s=PROBE_TIMEOUT_S)
    except NodeSilent as error:
        raise NodeRunning(_refusal(home)) from error
    except NoNode:
        _log.info("the node that holds this home does not listen; waiting for it")
        return False
    return True


def _refusal(home: Home) -> str:
    running = read_node_file(home.node_json)
    who = f"process {running.pid}" if running is not None else "a process that is just starting or ending"
    return f"Another node runs in {home.root} ({who}). Stop it with: agentmesh stop. Or give this one a home of its own: AGENTMESH_HOME."
