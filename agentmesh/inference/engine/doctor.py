"""`agentmesh engine doctor`: every engine found, in order, what it said, whether its server really starts, and what to do.

Starts servers without a model, for a moment, on a Unix socket or a loopback port; ends them with their process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import MAX_SOCKET_PATH_BYTES
from agentmesh.inference.engine.engine import ORIGIN_EMBEDDED, Engine, EngineSearch, FoundEngine
from agentmesh.inference.engine.errors import GET_EMBEDDED, TWO_WAYS
from agentmesh.inference.engine.limits import START_TIMEOUT_S, STOP_GRACE_S
from agentmesh.inference.engine.locate import find_engines, foreign_builds, named_folder
from agentmesh.inference.engine.pin import load_pin
from agentmesh.inference.engine.probe import missing_flags, probe, question_environment
from agentmesh.inference.engine.toolchain import detect_flavor

_POLL_S: Final = 0.05
_TAIL_BYTES: Final = 1_000


@dataclass(frozen=True)
class Finding:
    """One engine found. `engine` is None when it does not work; `starts` is None when that was not tried."""

    found: FoundEngine
    engine: Engine | None
    problem: str
    missing: tuple[str, ...] = ()
    starts: bool | None = None
    start_s: float = 0.0

    @property
    def usable(self) -> bool:
        return self.engine is not None and not self.missing and self.starts is not False


@dataclass(frozen=True)
class Diagnosis:
    """All of it. `chosen` is what a node would use; `foreign` are builds for other machines, each with the reason."""

    findings: tuple[Finding, ...]
    chosen: Finding | None
    foreign: tuple[tuple[Path, str], ...]
    hints: tuple[str, ...]


async def look(search: EngineSearch, *, start: bool = False) -> Diagnosis:
    """Probe every engine found; with `start`, also start the server of each that works."""
    named = named_folder(search)
    findings = tuple([await _look_at(found, search, start=start) for found in find_engines(search)])
    usable = [
        finding
        for finding in findings
        if finding.usable
        and (named is None or finding.found.origin == named[0])
        and finding.engine is not None
        and search.flavor in (None, finding.engine.flavor, finding.engine.origin)
    ]
    chosen = usable[0] if usable else None
    return Diagnosis(findings, chosen, tuple(foreign_builds(search)), tuple(_hints(search, findings, chosen)))


async def _look_at(found: FoundEngine, search: EngineSearch, *, start: bool) -> Finding:
    try:
        engine = await probe(found, search.environ)
    except AgentMeshError as error:
        return Finding(found, None, error.message)
    missing = missing_flags(engine)
    if missing:
        return Finding(found, engine, f"too old: it has no {', '.join(missing)}", missing)
    if not start or "--models-dir" not in engine.flags:  # older servers do not start without a model
        return Finding(found, engine, "")
    began = time.monotonic()
    problem = await asyncio.to_thread(check_start, engine, search.environ)
    return Finding(found, engine, problem, starts=not problem, start_s=round(time.monotonic() - began, 2))


def _hints(search: EngineSearch, findings: tuple[Finding, ...], chosen: Finding | None) -> list[str]:
    if chosen is None or chosen.engine is None:
        if search.flavor == ORIGIN_EMBEDDED:
            return [GET_EMBEDDED]
        wanted = f"Build one with `agentmesh engine install --flavor {search.flavor}`."
        return [f"No engine here can be used. {wanted if search.flavor else TWO_WAYS}"]
    engine = chosen.engine
    hints: list[str] = []
    if engine.is_embedded:
        hints.append("The embedded engine cannot split models over nodes; one built by `agentmesh engine install` can.")
    elif not engine.has_rpc:
        hints.append("No RPC server lies beside this llama-server, so it takes no part in splits.")
    pinned = load_pin().source.commit
    if engine.commit and not engine.is_embedded and engine.commit[: len(pinned)] != pinned[: len(engine.commit)]:
        hints.append(
            f"It is llama.cpp {engine.commit}; agentmesh is tested with {pinned}. Models are split only between nodes with equal engines."
        )
    flavor, why = detect_flavor(search.environ)
    if flavor != "cpu" and not engine.devices:
        hints.append(f"It uses no accelerator, but {why}: `agentmesh engine install --flavor {flavor}`.")
    if any(not finding.usable for finding in findings):
        hints.append("Engines that do not work are passed over.")
    return hints


def check_start(engine: Engine, environ: Mapping[str, str]) -> str:
    """Start the server without a model and ask for its health; returns what went wrong, or "". Blocks; at most 40 s."""
    folder = Path(tempfile.mkdtemp(prefix="agentmesh-doctor-"))
    try:
        return _start_in(folder, engine, environ)
    except OSError as error:
        return f"its server could not be started: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_in(folder: Path, engine: Engine, environ: Mapping[str, str]) -> str:
    path = folder / "engine.sock"
    by_socket = engine.unix_sockets and len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    port = 0 if by_socket else _free_port()
    where = ("--host", str(path)) if by_socket else ("--host", "127.0.0.1", "--port", str(port))
    offline = ("--offline",) if "--offline" in engine.flags else ()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*engine.command, *where, "--models-dir", str(folder), *offline],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**question_environment(environ), "LLAMA_CACHE": str(folder)},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return f"its server ended at once (exit status {process.returncode}): {_tail(log)}"
            if _is_healthy(path if by_socket else None, port):
                return ""
            time.sleep(_POLL_S)
        return f"its server was not healthy after {START_TIMEOUT_S:.0f} s: {_tail(log)}"
    finally:
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self._path))


def _is_healthy(path: Path | None, port: int) -> bool:
    connection = _UnixConnection(path) if path else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    text = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")
    return " / ".join(line.strip() for line in text.splitlines()[-3:])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
