"""RPC servers as processes: started, found listening, ended, and what a confined program cannot do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine import confine, rpc_server
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.leftovers import cleanup_leftovers, read_record
from agentmesh.inference.engine.rpc_server import RpcServerLimits, RpcServerProcess
from agentmesh.inference.logic.rpc_wire import Command, build_request, hello_request
from tests.fakes.mesh_nodes import eventually
from tests.fakes.rpc_world import held_port

LINUX = sys.platform == "linux"
WAIT_S = 60.0  # for what must come
LEFT_S = 30.0  # a killed node leaves no RPC server after it: at most five seconds are allowed, a machine that stands still aside
LIMITS = RpcServerLimits(ready_s=WAIT_S, said_s=WAIT_S, end_s=WAIT_S)

NODE = """
import asyncio, sys
from pathlib import Path
from agentmesh.inference.engine.rpc_server import RpcServerProcess

async def main(program, folder):
    server = RpcServerProcess(Path(program), ("",), folder=Path(folder) / "run", log=Path(folder) / "rpc.log", threads=1)
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def program(real_engine: Engine) -> Path:
    assert real_engine.rpc_server is not None
    return real_engine.rpc_server


@pytest.fixture
async def server(program: Path, tmp_path: Path) -> AsyncIterator[RpcServerProcess]:
    made = a_server(program, tmp_path)
    yield made
    await made.stop(0)


def a_server(program: Path, folder: Path, *devices: str, environ: dict[str, str] | None = None) -> RpcServerProcess:
    return RpcServerProcess(
        program,
        devices or ("",),
        folder=folder / "run",
        log=folder / "logs" / "rpc.log",
        threads=1,
        homes=(folder / "home",),
        environ=dict(os.environ) if environ is None else environ,
        limits=LIMITS,
    )


def lives(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------ from its start to its end


async def test_it_listens_on_loopback_alone_and_nobody_connected_to_it(server: RpcServerProcess) -> None:
    await server.start()
    assert server.pid is not None
    connections = psutil.Process(server.pid).net_connections()
    assert [(each.laddr, each.status) for each in connections] == [(("127.0.0.1", server.port), psutil.CONN_LISTEN)]
    assert server.cpu_seconds() < 10


async def test_stopped_it_is_gone_and_leaves_no_record(server: RpcServerProcess, tmp_path: Path) -> None:
    await server.start()
    pid = server.pid
    assert await server.stop(WAIT_S)
    assert not lives(pid)
    assert list((tmp_path / "run").iterdir()) == []
    assert "signal 15" in await server.ended()
    assert await server.stop(1.0)


async def test_a_stopped_process_is_ended_too(server: RpcServerProcess) -> None:
    await server.start()
    assert server.pid is not None
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    assert await server.stop(0.2)
    assert not lives(pid)


@pytest.mark.skipif(not LINUX, reason="only Linux ends a program with its parent")
async def test_it_dies_with_its_guard(server: RpcServerProcess, tmp_path: Path) -> None:
    """Confined it cannot signal anybody; the kernel's own signal at its parent's death reaches it all the same."""
    await server.start()
    pid = server.pid
    [record] = (tmp_path / "run").glob("*.json")
    found = read_record(record)
    assert found is not None
    os.kill(found.guard.pid, signal.SIGKILL)
    await asyncio.wait_for(server.ended(), WAIT_S)
    assert not lives(pid)


async def test_its_end_is_told_with_the_reason(server: RpcServerProcess, tmp_path: Path) -> None:
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGABRT)
    reason = await asyncio.wait_for(server.ended(), WAIT_S)
    assert reason.startswith("The RPC server crashed (signal 6)")
    assert str(tmp_path) not in reason  # a host reads it, on another machine
    assert server.pid is None


async def test_a_device_that_is_not_there_is_named_with_the_logs_last_lines(program: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="unknown device: NOPE"):
        await a_server(program, tmp_path, "NOPE").start()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("broken", ["folder", "log"])
async def test_what_a_host_hears_of_a_start_that_failed_names_no_path(
    program: Path, tmp_path: Path, broken: str
) -> None:
    server = a_server(program, tmp_path)
    if broken == "folder":
        (tmp_path / "run").write_text("no folder")
    else:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "rpc.log").symlink_to("/dev/full")
    with pytest.raises(EngineFailed, match="could not be started") as caught:
        await server.start()
    assert "/" not in caught.value.message
    assert server.pid is None


async def test_a_port_that_was_taken_meanwhile_is_replaced(
    server: RpcServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = rpc_server.free_port
        ports = [taken.getsockname()[1], taken.getsockname()[1]]
        monkeypatch.setattr(rpc_server, "free_port", lambda: ports.pop() if ports else free())
        await server.start()
        assert server.port != taken.getsockname()[1]
        assert lives(server.pid)


async def test_a_port_that_is_always_taken_is_a_failure(
    server: RpcServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked: list[int] = []
        monkeypatch.setattr(rpc_server, "free_port", lambda: asked.append(port) or port)
        with pytest.raises(EngineFailed, match="Failed to create server socket"):
            await server.start()
    assert len(asked) == rpc_server.STARTS
    assert list((tmp_path / "run").iterdir()) == []


async def test_no_secret_of_the_user_reaches_it(program: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "HF_TOKEN": "hf_secret", "GGML_NO_BACKTRACE": "0"}
    server = a_server(program, tmp_path, environ=environ)
    await server.start()
    try:
        seen = psutil.Process(server.pid).environ()
    finally:
        await server.stop(0)
    assert "HF_TOKEN" not in seen
    assert seen["GGML_NO_BACKTRACE"] == "1"


def test_a_killed_node_leaves_none_soon_after(program: Path, tmp_path: Path) -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(program), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    assert lives(pid)
    node.kill()
    node.wait(WAIT_S)
    node.stdout.close()
    deadline = time.monotonic() + LEFT_S
    while lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_what_a_killed_node_and_guard_left_is_ended_at_the_next_start(
    server: RpcServerProcess, tmp_path: Path
) -> None:
    await server.start()
    pid = server.pid
    assert cleanup_leftovers(tmp_path / "run") == 1
    assert not lives(pid)
    await eventually(lambda: server.pid is None)


# ------------------------------------------------------------------ confined


def has_landlock() -> bool:
    try:
        return LINUX and confine.Landlock().abi >= 1
    except OSError:
        return False


async def test_what_it_is_prevented_from_is_told(server: RpcServerProcess) -> None:
    await server.start()
    if has_landlock():
        assert server.confinement.startswith("Landlock")
    else:
        assert server.confinement.startswith("none")


@pytest.mark.skipif(not LINUX, reason="only Linux confines")
async def test_a_server_that_does_not_start_confined_runs_without_and_it_is_told(program: Path, tmp_path: Path) -> None:
    """As a driver that needs what the confinement does not give: its program cannot be read there."""
    home = tmp_path / "home"
    home.mkdir()
    wrapper = home / "rpc-server"
    wrapper.write_text(f'#!/bin/sh\ncat {home}/needed || exit 3\nexec {program} "$@"\n')
    wrapper.chmod(0o700)
    (home / "needed").write_text("")
    server = RpcServerProcess(
        wrapper, ("",), folder=tmp_path / "run", log=tmp_path / "rpc.log", threads=1, homes=(home,), limits=LIMITS
    )
    await server.start()
    try:
        assert lives(server.pid)
        assert server.confinement.startswith(
            "none: confined it does not start" if has_landlock() else "none: this kernel"
        )
    finally:
        await server.stop(0)
    (home / "needed").unlink()
    with pytest.raises(EngineFailed, match="status 3"):
        await RpcServerProcess(wrapper, ("",), folder=tmp_path / "run", log=tmp_path / "rpc.log", homes=(home,)).start()


def run_confined(code: str, homes: list[Path], port: int = 1) -> subprocess.CompletedProcess[str]:
    """Python under the wrapper: what happens, as it prints it."""
    python = os.path.realpath(sys.executable)
    words = [word for home in homes for word in ("--home", str(home))]
    return subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            confine.__file__,
            "--port",
            str(port),
            *words,
            "--",
            python,
            "-I",
            "-S",
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


TRY = """
import os, socket, sys
def attempt(name, action):
    try: action()
    except PermissionError: print(name, "denied")
    except OSError as error: print(name, error.errno)
    else: print(name, "done")
def listen(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port)); s.listen()
def connect(port):
    with socket.socket() as s: s.connect(("127.0.0.1", port))
"""


def test_the_kernel_denies_what_it_says(tmp_path: Path) -> None:
    """Without Landlock the program runs all the same, and says that nothing is prevented."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("s")
    with socket.create_server(("127.0.0.1", 0)) as listener, held_port() as held:
        own = listener.getsockname()[1]
        other = held.getsockname()[1]
        code = TRY + (
            f"attempt('read', lambda: open({str(home / 'secret')!r}).read())\n"
            f"attempt('list', lambda: os.listdir({str(home)!r}))\n"
            f"attempt('write', lambda: open({str(home / 'new')!r}, 'w'))\n"
            f"attempt('write-tmp', lambda: open({str(tmp_path / 'new')!r}, 'w'))\n"
            f"attempt('remove', lambda: os.unlink({str(home / 'secret')!r}))\n"
            f"attempt('connect', lambda: connect({own}))\n"
            f"attempt('listen-there', lambda: listen({other}))\n"
            "attempt('listen-elsewhere', lambda: listen(0))\n"
            "attempt('null', lambda: open('/dev/null', 'w').write('x'))\n"
            "attempt('random', lambda: open('/dev/urandom', 'rb').read(1))\n"
            "attempt('memory', lambda: open('/proc/meminfo').read())\n"
            f"attempt('of-others', lambda: open('/proc/{os.getpid()}/environ').read())\n"
            f"attempt('signal', lambda: os.kill({os.getpid()}, 0))\n"
        )
        ran = run_confined(code, [home, Path.home()], other)
    said = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    held = ran.stderr.splitlines()[0] if ran.stderr else ""
    assert held.startswith(confine.SAID), ran.stderr
    assert {said[each] for each in ("null", "random", "memory", "listen-there")} == {"done"}, ran.stdout
    if not has_landlock():
        assert held.removeprefix(confine.SAID).startswith("none") and said["read"] == "done"
        return
    abi = confine.Landlock().abi
    denied = ["read", "list", "write", "write-tmp", "remove", "of-others"]
    denied += ["connect", "listen-elsewhere"] if abi >= 4 else []
    denied += ["signal"] if abi >= 6 else []
    assert {name: said[name] for name in denied} == dict.fromkeys(denied, "denied")
    assert ("connects to nobody" in held) == (abi >= 4)
    assert (home / "secret").exists()


def test_a_program_that_cannot_be_executed_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", confine.__file__, "--port", "1", "--", str(tmp_path / "nothing")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ran.returncode == confine.EXIT_NOT_STARTED
    assert "cannot be executed: No such file" in ran.stderr


def _ignore(*_: object) -> None:
    """Not for this process."""


def test_a_kernel_without_landlock_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, number: int, *arguments: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(confine.Landlock, "_call", refuse)
    monkeypatch.setattr("resource.setrlimit", _ignore)
    held = confine.confine("/bin/true", [], 1)
    assert held.startswith("none") and "Function not implemented" in held


@pytest.mark.parametrize("confined", [True, False])
async def test_a_host_that_leaves_while_it_is_answered_does_not_end_it(
    server: RpcServerProcess, confined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ggml-rpc-server writes a reply in two pieces: the second one meets a closed connection, and SIGPIPE."""
    monkeypatch.setattr(server, "_confined", confined and LINUX)
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(hello_request() + build_request(Command.DEVICE_COUNT))
    os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(hello_request())
        assert await reader.read(1)  # it serves the next
    writer.close()
    assert server.pid == pid
    assert lives(pid)
