"""`agentmesh engine …` and `agentmesh gpus`: words, JSON and exit codes, with stand-ins and with the real engine."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agentmesh.cli import engine as cli_engine
from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.engine import doctor, hardware, locate
from agentmesh.inference.engine.doctor import check_start, look
from agentmesh.inference.engine.engine import Engine
from tests.fakes.engine_programs import HELP, program, server
from tests.fakes.engines import ENGINE_CACHE, engine_search

CUDA = "Available devices:\n  CUDA0: NVIDIA H200 (143167 MiB, 142650 MiB free)\n"


@pytest.fixture(autouse=True)
def _only_what_the_test_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "EMBEDDED_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def said(*arguments: str) -> tuple[int, str, str]:
    command = cli_engine.gpus if arguments[0] == "gpus" else cli_engine.engine
    result = CliRunner().invoke(command, arguments[1:], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.stdout, result.stderr


def answered(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json")[1])


def test_list_marks_the_engine_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "a" / "llama-server", "exit 1")
    good = server(tmp_path / "b" / "llama-server", devices=CUDA)
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b:/usr/bin:/bin")
    rows = answered("engine", "list")["engines"]
    assert [(row["used"], row["flavor"], row["build"]) for row in rows] == [(False, None, None), (True, "cuda", 12)]
    lines = said("engine", "list")[1].splitlines()
    assert "does not work" in lines[0]
    assert lines[1].startswith("* cuda")
    assert lines[1].endswith(str(good))


def test_list_without_any_engine_says_how_to_get_one() -> None:
    code, out, err = said("engine", "list")
    assert (code, out) == (0, "")
    assert "agentmesh engine install" in err


def test_doctor_tells_what_is_wrong_and_fails_when_none_can_be_used(tmp_path: Path) -> None:
    server(tmp_path / "llama-server", help_text=HELP.replace("--parallel", "--x").replace("-np,", "-nx,"))
    code, out, err = said("engine", "doctor", "--bin-dir", str(tmp_path))
    assert code == 1
    assert "too old: it has no --parallel" in out
    assert "agentmesh engine install" in err
    report = answered("engine", "doctor", "--bin-dir", str(tmp_path))
    assert report["engines"][0]["missing_flags"] == ["--parallel"]
    assert not report["engines"][0]["used"]


def test_doctor_starts_the_server_and_tells_when_it_ends_at_once(tmp_path: Path) -> None:
    path = server(tmp_path / "llama-server", help_text=f"{HELP}\n--models-dir PATH     directory")
    path.write_text(path.read_text().replace("exit 9", "echo no backend; exit 9"))
    code, out, _ = said("engine", "doctor", "--bin-dir", str(tmp_path))
    assert code == 1
    assert "ended at once (exit status 9): no backend" in out


async def test_a_server_that_never_gets_healthy_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "pid"

    class Time:
        """Passes once the server runs: however long a machine takes to start a shell, it is given up as one that ran."""

        sleep = staticmethod(time.sleep)

        @staticmethod
        def monotonic() -> float:
            return 1_000.0 if written.exists() and written.read_text().strip() else 0.0

    monkeypatch.setattr(doctor, "time", Time)
    path = server(tmp_path / "llama-server", help_text=f"{HELP}\n--models-dir PATH     directory")
    path.write_text(path.read_text().replace("exit 9", f"echo $$ > {tmp_path}/pid; exec sleep 600"))
    search = engine_search(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin", AGENTMESH_ENGINE_CACHE="")
    (finding,) = (await look(search, start=True)).findings
    assert "not healthy after" in finding.problem
    assert finding.starts is False
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_gpus_shows_what_the_engine_lists(tmp_path: Path) -> None:
    server(tmp_path / "llama-server", devices=CUDA)
    _, out, _ = said("gpus", "--bin-dir", str(tmp_path))
    assert "CUDA0: NVIDIA H200" in out
    report = answered("gpus", "--bin-dir", str(tmp_path))
    assert report["devices_usable"]
    assert report["devices_from"] == "engine"
    assert report["devices"] == [
        {"name": "CUDA0", "description": "NVIDIA H200", "total_bytes": 143167 << 20, "free_bytes": 142650 << 20}
    ]
    assert report["memory"]["total_bytes"] > report["memory"]["available_bytes"] > 0
    assert report["cpu"]["cores"] >= 1
    assert report["cpu"]["model"]


def test_gpus_that_the_engine_cannot_use_are_shown_with_the_way_to_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(tmp_path / "llama-server")
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA H200, 143771, 143000'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    report = answered("gpus")
    assert report["devices_from"] == "nvidia-smi"
    assert not report["devices_usable"]
    assert "cannot use these devices" in report["note"]


def test_gpus_works_without_an_engine_and_with_tools_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    program(tmp_path / "rocm-smi", "echo 'not json'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(hardware, "_system_devices", lambda _: ())
    report = answered("gpus")
    assert report["devices"] == []
    assert "agentmesh engine install" in report["note"]


def test_gpus_with_a_wrong_bin_dir_fails(tmp_path: Path) -> None:
    with pytest.raises(AgentMeshError, match="which --bin-dir names"):
        said("gpus", "--bin-dir", str(tmp_path))


def test_graphics_cards_are_listed_by_the_system_without_connectors_and_display_chips(tmp_path: Path) -> None:
    for card, vendor in (("card0", "0x1002"), ("card0-HDMI-A-1", "0x1002"), ("card1", "0x1a03"), ("card2", "0x8086")):
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "device" / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "card0/device/mem_info_vram_total").write_text("1000\n")
    (tmp_path / "card0/device/mem_info_vram_used").write_text("garbage")
    cards = hardware._system_devices(tmp_path)  # pyright: ignore[reportPrivateUsage]
    assert [(c.name, c.description, c.total_bytes, c.free_bytes) for c in cards] == [
        ("card0", "AMD graphics", 1000, 1000),
        ("card2", "Intel graphics", 0, 0),
    ]


def test_install_is_quick_where_the_build_is(real_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMESH_ENGINE_CACHE", str(ENGINE_CACHE))
    report = answered("engine", "install", "--flavor", "cpu")
    assert report["was_there"]
    assert Path(report["bin"]) / "llama-server" == Path(real_engine.command[0])
    _, out, err = said("engine", "install", "--flavor", "cpu")
    assert out.strip() == report["bin"]
    assert "already built" in err


def test_the_real_engine_is_what_we_pinned_and_has_all_that_we_need(real_engine: Engine) -> None:
    assert real_engine.commit == "0c1e570"
    assert real_engine.has_rpc
    assert real_engine.unix_sockets
    assert real_engine.gguf_split is not None
    assert real_engine.imatrix is not None
    assert {
        "--ctx-size",
        "--parallel",
        "--rpc",
        "--tensor-split",
        "--device",
        "--mmproj",
        "--metrics",
    } <= real_engine.flags
    assert "--draft-max" not in real_engine.flags  # its help says removed


def test_the_real_server_starts_and_is_healthy(real_engine: Engine) -> None:
    assert check_start(real_engine, os.environ) == ""


def test_the_real_server_starts_on_a_port_where_unix_sockets_are_not_known(real_engine: Engine) -> None:
    assert check_start(replace(real_engine, unix_sockets=False), os.environ) == ""
