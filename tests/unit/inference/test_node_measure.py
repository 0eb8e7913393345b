"""What a machine is for splits: its engine's version is asked once, of a program that cannot serve anybody meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.logic.split_values import NO_RPC_VERSION, DeviceFacts
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.split.facts import ENGINE_AGE_S, NodeMeasure, rpc_version_of
from tests.fakes.engine_programs import program
from tests.fakes.serving import FakeMachine
from tests.fakes.split_world import GB

PRINTS = 'echo "$@" >> "$0.asked"; echo "Starting RPC server v7.0.2"; echo "Failed to create server socket" >&2'


def asked(path: Path) -> list[str]:
    log = path.with_name(f"{path.name}.asked")
    return log.read_text().splitlines() if log.exists() else []


async def test_the_version_is_what_the_program_prints_and_is_asked_once(tmp_path: Path) -> None:
    path = program(tmp_path / "rpc", PRINTS)
    assert [await rpc_version_of(path) for _ in range(2)] == [(7, 0, 2)] * 2
    (line,) = asked(path)
    assert line.startswith("-H 127.0.0.1 -p ")


async def test_another_file_in_its_place_is_asked_again(tmp_path: Path) -> None:
    path = program(tmp_path / "rpc", PRINTS)
    assert await rpc_version_of(path) == (7, 0, 2)
    program(path, 'echo "Starting RPC server v8.1.0"')
    os.utime(path, (1, 1))
    assert await rpc_version_of(path) == (8, 1, 0)


@pytest.mark.parametrize("body", ["exit 3", 'echo "Starting RPC server v999.0.0"', 'echo "version unknown"'])
async def test_a_program_that_does_not_say_has_no_version_and_is_asked_again(tmp_path: Path, body: str) -> None:
    path = program(tmp_path / "rpc", f'echo "$@" >> "$0.asked"; {body}')
    for _ in range(2):
        assert await rpc_version_of(path) == NO_RPC_VERSION
    assert len(asked(path)) == 2
    assert await rpc_version_of(tmp_path / "none") == NO_RPC_VERSION


async def test_the_port_that_it_is_given_is_taken(tmp_path: Path) -> None:
    path = program(tmp_path / "rpc", PRINTS)
    await rpc_version_of(path)
    port = int(asked(path)[0].split()[3])
    with socket.create_server(("127.0.0.1", port)):  # it was ours, and nobody else's, and is free again
        pass


# ------------------------------------------------------------------ the whole


class Here:
    """A machine with an engine."""

    def __init__(self, engine: Engine | None, devices: Sequence[Device] = ()) -> None:
        self.engine, self.devices = engine, devices
        self.found = 0
        self.now_s = 1.0
        self.measure = NodeMeasure(
            MemoryBook(self._devices, FakeMachine(32 * GB)), self._find, None, now_s=lambda: self.now_s
        )

    async def _devices(self, _engine: Engine) -> Sequence[Device]:
        return self.devices

    async def _find(self) -> Engine | None:
        self.found += 1
        return self.engine


def an_engine(rpc: Path | None, *devices: Device, flags: tuple[str, ...] = ("--rpc",)) -> Engine:
    return Engine(("x",), rpc, None, None, "cpu", "PATH", 1, "0c1e570", frozenset(flags), devices, True)


async def test_a_machine_with_an_engine_that_shares(tmp_path: Path) -> None:
    gpu = Device("CUDA0", "one", 8 * GB, 6 * GB)
    here = Here(an_engine(program(tmp_path / "rpc", PRINTS), gpu), [gpu])
    now = await here.measure()
    assert now.devices == (DeviceFacts("CUDA0", 6 * GB, 8 * GB),)
    assert (now.engine_commit, now.rpc_version, now.has_rpc) == ("0c1e570", (7, 0, 2), True)
    assert (now.machine_free_bytes, now.machine_total_bytes) == (32 * GB, 32 * GB)


async def test_an_engine_without_rpc_or_whose_server_does_not_start_shares_nothing(tmp_path: Path) -> None:
    for engine in (an_engine(None), an_engine(program(tmp_path / "rpc", "exit 1")), None):
        now = await Here(engine).measure()
        assert (now.has_rpc, now.rpc_version, now.machine_free_bytes) == (False, NO_RPC_VERSION, 32 * GB)


async def test_an_engine_that_was_installed_meanwhile_is_noticed_after_a_minute() -> None:
    here = Here(None)
    assert (await here.measure()).engine_commit == ""
    here.engine = an_engine(None)
    assert (await here.measure()).engine_commit == ""
    here.now_s += ENGINE_AGE_S
    assert (await here.measure()).engine_commit == "0c1e570"
    assert here.found == 2
