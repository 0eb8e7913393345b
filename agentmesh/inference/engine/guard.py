"""The process between a node and an engine: starts the engine, keeps its log, and ends it and all its descendants.

    python -I -S guard.py --folder F --name N --log L --log-bytes B --orphan-grace-ms G -- COMMAND…

Standard library only and few imports: one of these runs beside each engine. It must not know what an engine is. What goes in
and out, and why it is there at all: docs/engine-processes.md.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, NoReturn

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER: Final = 36
MARK_VARIABLE: Final = "AGENTMESH_ENGINE_MARK"
LOOK_MS: Final = 1_000  # at the parent's id, where the pipe's end does not come
KILL_ROUNDS: Final = 100  # of KILL_PAUSE_S, after SIGKILL; what is left then hangs in the kernel
KILL_PAUSE_S: Final = 0.05
READ_BYTES: Final = 65_536
MAX_CONTROL_BYTES: Final = 4_096
MAX_ANCESTRY: Final = 1_000
EXIT_NOT_STARTED: Final = 127


# ------------------------------------------------------------------ names for processes


def boot_id() -> str:
    """This run of the machine: process ids mean nothing beyond it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs 5 ms
            return file.read().strip()
    except OSError:
        return _say_of("sysctl", "-n", "kern.bootsessionuuid")


def start_mark(pid: int) -> str:
    """When the process began, in whatever form the system gives; empty when there is no such process.

    Together with the id it names one process: clock ticks since boot on Linux, a second elsewhere.
    """
    if sys.platform == "linux":
        fields = _stat(pid)
        return fields[19] if fields else ""
    return _say_of("ps", "-o", "lstart=", "-p", str(pid))


def _say_of(*command: str) -> str:
    import subprocess

    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _stat(pid: int) -> list[str]:
    """Of /proc/PID/stat, the fields after the name (proc(5)): state, parent, …, start time at 19."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def descendants(root: int) -> list[int]:
    """Children of `root`, theirs, and so on; Linux only, else empty."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return []
    for name in names:
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    level = [root]
    for _ in range(MAX_ANCESTRY):
        level = [child for parent in level for child in children.get(parent, ())]
        if not level:
            break
        found += level
    return found


# ------------------------------------------------------------------ the log


class Log:
    """A file of bounded size and one older one. What cannot be written is dropped: the engine must not wait for a disk."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._descriptor = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Add it, with a change of files before it if it would not fit."""
        if self._size and self._size + len(data) > self._max_bytes:
            self._rotate()
        with contextlib.suppress(OSError):
            self._size += os.write(self._descriptor, data)

    def _rotate(self) -> None:
        with contextlib.suppress(OSError):
            os.replace(self._path, self._path + ".1")  # noqa: PTH105
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1
        self._open()


# ------------------------------------------------------------------ the guard


class Guard:
    """One engine's guard. `run()` returns when nothing of the engine is left."""

    def __init__(self, folder: str, name: str, log: Log, orphan_grace_s: float, command: Sequence[str]) -> None:
        self._record = os.path.join(folder, name + ".json")  # noqa: PTH118
        self._folder = folder
        self._log = log
        self._orphan_grace_s = orphan_grace_s
        self._command = list(command)
        self._parent = os.getppid()
        self._pid = 0
        self._status: int | None = None  # as waitpid gives it, of the engine itself
        self._kill_at: float | None = None
        self._ending = False
        self._orphaned = False
        self._control = b""

    def run(self) -> int:
        self._output, writing = os.pipe()
        try:
            self._start(writing)
        except OSError as error:
            self._say({"failed": error.strerror or str(error)})
            self._forget()
            return EXIT_NOT_STARTED
        finally:
            os.close(writing)
        self._say({"spawned": {"pid": self._pid, "start": start_mark(self._pid)}})
        self._watch()
        self._end_the_rest()
        self._drain()
        self._forget()
        status = self._status if self._status is not None else 0
        signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self._say({"exited": {"code": code, "signal": signalled}})
        return code if code is not None else 128 + (signalled or 0)

    # ---- start

    def _start(self, writing: int) -> None:
        """Fork; the engine's program runs only after its record is on disk.

        Raises:
            OSError: the program cannot be executed, or the record cannot be written.
        """
        go, may_go = os.pipe()
        failure, failed = os.pipe()
        guard = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(may_go)
            self._become_engine(guard, go, failed, writing)
        os.close(go)
        os.close(failed)
        try:
            self._remember()
            os.write(may_go, b"g")
        except OSError as error:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise OSError(error.errno, f"{self._folder} cannot be written ({error.strerror})") from error
        finally:
            os.close(may_go)
        reported = os.read(failure, 64)
        os.close(failure)
        if reported:
            os.waitpid(self._pid, 0)
            raise OSError(int(reported), os.strerror(int(reported)))

    def _become_engine(self, guard: int, go: int, failed: int, output: int) -> NoReturn:
        code = EXIT_NOT_STARTED
        try:
            os.setsid()
            set_process_option(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard or os.read(go, 1) != b"g":  # it died before that took effect
                os._exit(code)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            # Ignored signals and masks go through exec. Python ignores SIGXFSZ, and SIGPIPE, which stays so: ggml-rpc-server
            # answers into connections that are closed, and would die of it.
            for number in (signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.umask(0o077)  # its socket is its user's
            os.chdir(self._folder)
            os.execvp(self._command[0], self._command)  # noqa: S606 - no shell is what we want
        except OSError as error:
            os.write(failed, str(error.errno or errno.EIO).encode())
        finally:
            os._exit(code)

    def _remember(self) -> None:
        """Write the record in one step."""
        own, engine = os.getpid(), self._pid
        record = {
            "boot": boot_id(),
            "guard": {"pid": own, "start": start_mark(own)},
            "engine": {"pid": engine, "start": start_mark(engine)},
            "mark": os.environ.get(MARK_VARIABLE, ""),
        }
        descriptor = os.open(self._record + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(record).encode())
        finally:
            os.close(descriptor)
        os.replace(self._record + ".new", self._record)  # noqa: PTH105

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._record)  # noqa: PTH108

    def _say(self, event: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more
            os.write(1, json.dumps(event).encode() + b"\n")

    # ---- while it runs

    def _watch(self) -> None:
        """Until the engine itself has ended: its output, the control pipe, the parent, the time."""
        waking, wake = os.pipe()
        for descriptor in (waking, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # its arrival wakes poll()
        signal.signal(signal.SIGTERM, self._on_term)
        poller = select.poll()
        for descriptor in (0, self._output, waking):
            poller.register(descriptor, select.POLLIN)
        while not self._reap():
            self._press_on()
            for descriptor, _ in poller.poll(self._wait_ms()):
                if descriptor == waking:
                    with contextlib.suppress(BlockingIOError):
                        os.read(waking, READ_BYTES)
                elif descriptor == 0:
                    if not self._read_control():
                        poller.unregister(0)
                elif not self._read_output():
                    poller.unregister(self._output)
            if not self._orphaned and os.getppid() != self._parent:
                self._on_orphaned()

    def _wait_ms(self) -> float:
        if self._kill_at is None:
            return LOOK_MS
        return min(LOOK_MS, max(0.0, (self._kill_at - time.monotonic()) * 1000 + 1))

    def _on_term(self, _number: int, _frame: object) -> None:
        self._terminate(self._orphan_grace_s)

    def _on_orphaned(self) -> None:
        self._orphaned = True
        self._terminate(self._orphan_grace_s)

    def _read_control(self) -> bool:
        """Take commands in; False at its end."""
        data = os.read(0, READ_BYTES)
        *lines, self._control = (self._control + data).split(b"\n")
        self._control = self._control[:MAX_CONTROL_BYTES]
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == b"stop" and number.isdigit():
                self._terminate(int(number) / 1000)
            elif word == b"kill":
                self._terminate(0)
        if not data:
            self._on_orphaned()
        return bool(data)

    def _read_output(self) -> bool:
        data = os.read(self._output, READ_BYTES)
        self._log.write(data)
        return bool(data)

    def _terminate(self, grace_s: float) -> None:
        """SIGTERM once to all there is; SIGKILL after the shortest grace that was given."""
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if not self._ending:
            self._ending = True
            self._signal_all(signal.SIGTERM)

    def _press_on(self) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            self._kill_at = time.monotonic() + LOOK_MS / 1000  # and again, for what was forked meanwhile

    def _signal_all(self, number: int) -> None:
        """The engine's group while its number is its own, and every descendant outside of it: each once: llama-server
        takes a second SIGTERM for an order to drop everything."""
        has_group = self._status is None or not hasattr(os, "waitid")
        if has_group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if not has_group or os.getpgid(pid) != self._pid:
                    os.kill(pid, number)

    def _reap(self) -> bool:
        """Take in children that ended; whether the engine itself has."""
        self._end_group_if_leader_ended()
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._pid:
                    self._status = status
        return self._status is not None

    def _end_group_if_leader_ended(self) -> None:
        """Before the engine is reaped, while nobody else can have its number: the rest of its group ends with it."""
        if self._status is None and hasattr(os, "waitid"):  # Python has none on macOS before 3.13
            with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
                if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    os.killpg(self._pid, signal.SIGKILL)

    # ---- afterwards

    def _end_the_rest(self) -> None:
        """What the engine left behind has no right to go on."""
        for _ in range(KILL_ROUNDS):
            self._signal_all(signal.SIGKILL)
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(KILL_PAUSE_S)
            except ChildProcessError:
                return

    def _drain(self) -> None:
        """The last words that are in the pipe; whoever still holds it open is not waited for."""
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # a pipe holds 64 KiB, on some systems 1 MiB
                if not self._read_output():
                    return


def set_process_option(option: int, value: int) -> None:
    """prctl(2), where there is one. A kernel that refuses leaves us with the other ways."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(words: Sequence[str]) -> int:
    split = list(words).index("--")
    options = dict(zip(words[:split:2], words[1:split:2], strict=True))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's; the node decides
    set_process_option(PR_SET_CHILD_SUBREAPER, 1)
    log = Log(options["--log"], int(options["--log-bytes"]))
    grace_s = int(options["--orphan-grace-ms"]) / 1000
    return Guard(options["--folder"], options["--name"], log, grace_s, words[split + 1 :]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
