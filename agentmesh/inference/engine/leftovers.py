"""Ends what engines of an earlier node left running: found by the record that their guard wrote, never by name.

Owns reading and clearing those records. A process counts as recorded when its id, its start time and the machine's boot are the
recorded ones, or when the record's random mark is in its environment (what a dead engine had forked off).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import psutil

from agentmesh.inference.engine.address import left_sockets
from agentmesh.inference.engine.guard import MARK_VARIABLE, boot_id, start_mark

_log = logging.getLogger(__name__)

END_WITHIN_S: Final = 5.0  # of SIGKILL; what is left then hangs in the kernel
PAUSE_S: Final = 0.05
MAX_RECORD_BYTES: Final = 4_096
MARK_CHARS: Final = 32


class RecordedProcess(msgspec.Struct, frozen=True):
    """One process for good: ids are used again, an id with its start time is not (within one boot)."""

    pid: int
    start: str


class Record(msgspec.Struct, frozen=True):
    """What a guard writes before its engine runs."""

    boot: str
    guard: RecordedProcess
    engine: RecordedProcess
    mark: str


def cleanup_leftovers(folder: Path) -> int:
    """End every process that a record in `folder` names, and remove the records and sockets. Blocks, at most some seconds.

    Only for a folder whose node does not run any more. Returns how many engines were ended. Never raises: a record that cannot be read
    names nobody.
    """
    ended = sum(end_recorded(path) for path in sorted(folder.glob("*.json")))
    for path in [*folder.glob("*.json.new"), *left_sockets(folder)]:
        with contextlib.suppress(OSError):
            path.unlink()
    return ended


def end_recorded(path: Path) -> bool:
    """End what one record names, and remove it; whether there was something to end."""
    record = read_record(path)
    found = record is not None and record.boot == boot_id() and _end(record)
    with contextlib.suppress(OSError):
        path.unlink()
    if found and record is not None:
        _log.warning("ended engine process %s, which an earlier node had left", record.engine.pid)
    return found


def read_record(path: Path) -> Record | None:
    """The record in that file; None when it is not one."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def _end(record: Record) -> bool:
    """SIGKILL until nobody is left; engines keep nothing that a gentler end would save."""
    deadline = time.monotonic() + END_WITHIN_S
    found = False
    while living := list(_living(record)):
        found = True
        if time.monotonic() >= deadline:
            _log.error("processes %s of an earlier engine cannot be ended", living)
            break
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return found


def _living(record: Record) -> Iterator[int]:
    for process in (record.engine, record.guard):
        if process.pid > 1 and start_mark(process.pid) == process.start and not _is_zombie(process.pid):
            yield process.pid
    if len(record.mark) == MARK_CHARS:
        yield from _marked(record.mark)


def _marked(mark: str) -> Iterator[int]:
    """This user's processes with the mark in their environment, this one aside."""
    own, user = os.getpid(), os.getuid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != own and process.uids().real == user and process.environ().get(MARK_VARIABLE) == mark:
                yield process.pid


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
