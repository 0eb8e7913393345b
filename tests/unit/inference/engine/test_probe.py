"""Asking engines what they are, whatever they answer, and choosing one."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.core.paths import Home
from agentmesh.inference.engine import locate, probe, run_program
from agentmesh.inference.engine.engine import Device, Engine, EngineSearch, FoundEngine
from agentmesh.inference.engine.errors import EngineFailed, EngineMissing, EngineTooOld, UnknownFlavor
from agentmesh.inference.engine.probe import devices_now, missing_flags, resolve_engine
from agentmesh.inference.engine.run_program import run_bounded
from tests.fakes.engine_programs import HELP, asked, late_when_written, program, server

CUDA = "Available devices:\n  CUDA0: NVIDIA H200 (143167 MiB, 142650 MiB free)\n"


@pytest.fixture(autouse=True)
def _no_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "EMBEDDED_PACKAGE", "no_such_package_here")


def found(path: Path) -> FoundEngine:
    return FoundEngine((str(path),), "PATH", "", rpc_server=path.with_name("ggml-rpc-server"))


def search(tmp_path: Path, bin_dir: Path | None = None, flavor: str | None = None, **environ: str) -> EngineSearch:
    return EngineSearch(bin_dir, Home(tmp_path / "home"), flavor, {"PATH": "/usr/bin:/bin", **environ})


async def test_an_engine_is_what_it_says(tmp_path: Path) -> None:
    engine = await probe.probe(found(server(tmp_path / "llama-server", devices=CUDA)))
    assert (engine.build, engine.commit, engine.flavor) == (12, "0c1e570", "cuda")
    assert engine.devices == (Device("CUDA0", "NVIDIA H200", 143167 << 20, 142650 << 20),)
    assert engine.unix_sockets
    assert engine.has_rpc
    assert not engine.is_embedded
    assert missing_flags(engine) == ()


async def test_an_engine_is_asked_once_for_as_long_as_its_file_is_the_same(tmp_path: Path) -> None:
    path = server(tmp_path / "llama-server")
    first = await probe.probe(found(path))
    assert await probe.probe(found(path)) is first
    assert asked(path) == ["--help", "--version", "--list-devices"]
    server(path, devices=CUDA)
    assert (await probe.probe(found(path))).flavor == "cuda"


async def test_the_embedded_engine_is_taken_by_its_name_before_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(tmp_path / "llama-server")
    wanted = search(tmp_path, flavor="embedded", AGENTMESH_BIN_DIR=str(tmp_path))
    with pytest.raises(EngineMissing, match=r"not installed here.*pip install 'agentmesh\[embedded\]'"):
        await resolve_engine(wanted)
    monkeypatch.setattr(locate, "_embedded", lambda: FoundEngine((str(tmp_path / "llama-server"),), "embedded", "cpu"))
    assert (await resolve_engine(wanted)).is_embedded
    with pytest.raises(InvalidInput, match="two different engines"):
        await resolve_engine(replace(wanted, bin_dir=tmp_path))


async def test_free_memory_is_asked_anew(tmp_path: Path) -> None:
    path = server(tmp_path / "llama-server", devices=CUDA)
    engine = await probe.probe(found(path))
    assert await devices_now(engine) == engine.devices
    assert asked(path).count("--list-devices") == 2


async def test_devices_are_not_asked_of_an_engine_that_lists_none(tmp_path: Path) -> None:
    path = server(tmp_path / "llama-server", help_text=HELP.replace("--list-devices", "--something"))
    engine = await probe.probe(found(path))
    assert engine.devices == ()
    assert await devices_now(engine) == ()
    assert "--list-devices" not in asked(path)


async def test_llama_cpps_own_variables_do_not_reach_the_questions(tmp_path: Path) -> None:
    path = program(tmp_path / "llama-server", f'[ -z "$LLAMA_ARG_MODEL" ] || exit 3\ncat <<END\n{HELP}\nEND')
    engine = await probe.probe(found(path), {**os.environ, "LLAMA_ARG_MODEL": "/m.gguf"})
    assert "--model" in engine.flags


BAD = {
    "hangs": ("sleep 600", r"did not answer --help within"),
    "fails": ("echo no licence; exit 7", r"exit status 7\):\nno licence"),
    "garbage": ("head -c 5000 /dev/urandom", r"is not llama.cpp's server"),
    "silent": ("true", r"is not llama.cpp's server.*nothing"),
    "other program": ("echo Usage: frob [-x] FILE", r"is not llama.cpp's server.*frob"),
    "floods": ("yes", r"printed over 2 MiB"),
    "other cpu": ("kill -ILL $$", r"instructions that this one lacks"),
    "crash": ("kill -SEGV $$", r"signal 11"),
    "library": (
        "echo 'error while loading shared libraries: libcuda.so.1: no'; exit 127",
        r"lacks a library:.*libcuda",
    ),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_program_that_does_not_answer_as_it_should_gives_the_reason(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, sentence = BAD[kind]
    if kind == "hangs":
        monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 0.3)
    path = program(tmp_path / "llama-server", body)
    with pytest.raises(EngineFailed, match=f"(?s){sentence}") as raised:
        await asyncio.wait_for(probe.probe(found(path)), 60)
    assert str(path) in raised.value.message


async def test_a_file_for_another_machine_or_without_the_right_to_run_gives_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "llama-server"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xfe" + bytes(100))
    path.chmod(0o755)
    with pytest.raises(EngineFailed, match="not a program for this machine"):
        await probe.probe(found(path))
    path.chmod(0o644)
    with pytest.raises(EngineFailed, match="chmod"):
        await probe.probe(found(path))
    path.unlink()
    with pytest.raises(EngineFailed, match="cannot be read"):
        await probe.probe(found(path))


async def test_the_first_engine_that_works_is_chosen(tmp_path: Path) -> None:
    program(tmp_path / "a" / "llama-server", "exit 1")
    server(tmp_path / "b" / "llama-server", help_text="-m,    --model FNAME    path")
    good = server(tmp_path / "c" / "llama-server")
    chosen = await resolve_engine(search(tmp_path, PATH=f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/c:/usr/bin:/bin"))
    assert chosen.command == (str(good),)


async def test_without_any_engine_the_two_ways_to_get_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing) as raised:
        await resolve_engine(search(tmp_path))
    assert "agentmesh engine install" in raised.value.message
    assert "pip install 'agentmesh[embedded]'" in raised.value.message


async def test_when_none_works_each_ones_reason_is_told(tmp_path: Path) -> None:
    program(tmp_path / "a" / "llama-server", "echo first; exit 1")
    program(tmp_path / "b" / "llama-server", "echo second; exit 1")
    with pytest.raises(EngineMissing, match=r"(?s)that works.*first.*second"):
        await resolve_engine(search(tmp_path, PATH=f"{tmp_path}/a:{tmp_path}/b:/usr/bin:/bin"))


async def test_a_named_folder_is_not_quietly_passed_over(tmp_path: Path) -> None:
    server(tmp_path / "good" / "llama-server")
    program(tmp_path / "bad" / "llama-server", "exit 1")
    (tmp_path / "empty").mkdir()
    path = f"{tmp_path}/good:/usr/bin:/bin"
    with pytest.raises(EngineFailed, match="bad"):
        await resolve_engine(search(tmp_path, tmp_path / "bad", PATH=path))
    with pytest.raises(EngineMissing, match=r"empty, which --bin-dir names"):
        await resolve_engine(search(tmp_path, tmp_path / "empty", PATH=path))
    with pytest.raises(EngineMissing, match=r"empty, which AGENTMESH_BIN_DIR names"):
        await resolve_engine(search(tmp_path, PATH=path, AGENTMESH_BIN_DIR=str(tmp_path / "empty")))


@pytest.mark.parametrize("flag", ["--model", "--ctx-size", "--parallel", "--host", "--port"])
async def test_an_engine_without_an_option_that_we_need_is_too_old(tmp_path: Path, flag: str) -> None:
    short = {"--model": "-m,", "--ctx-size": "-c,", "--parallel": "-np,"}.get(flag, "")
    text = "\n".join(line for line in HELP.splitlines() if flag not in line and not (short and line.startswith(short)))
    server(tmp_path / "llama-server", help_text=text)
    with pytest.raises(EngineTooOld, match=f"has no {flag}"):
        await resolve_engine(search(tmp_path, tmp_path))


async def test_an_engine_that_only_listens_on_ports_must_take_a_key(tmp_path: Path) -> None:
    text = HELP.replace(".sock", "").replace("--api-key", "--other")
    server(tmp_path / "llama-server", help_text=text)
    with pytest.raises(EngineTooOld, match="--api-key"):
        await resolve_engine(search(tmp_path, tmp_path))


async def test_a_wanted_flavour_is_checked_by_what_the_engine_lists(tmp_path: Path) -> None:
    server(tmp_path / "cpu" / "llama-server")
    server(tmp_path / "gpu" / "llama-server", devices=CUDA)
    path = f"{tmp_path}/cpu:{tmp_path}/gpu:/usr/bin:/bin"
    chosen = await resolve_engine(search(tmp_path, None, "cuda", PATH=path))
    assert chosen.command == (str(tmp_path / "gpu/llama-server"),)
    with pytest.raises(EngineMissing, match="--flavor vulkan"):
        await resolve_engine(search(tmp_path, None, "vulkan", PATH=path))
    with pytest.raises(EngineMissing, match="of flavour cpu, not cuda"):
        await resolve_engine(search(tmp_path, tmp_path / "cpu", "cuda"))
    with pytest.raises(UnknownFlavor):
        await resolve_engine(search(tmp_path, None, "tpu"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_late_programs_children_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late_when_written(monkeypatch, run_program, tmp_path / "child")
    path = program(tmp_path / "x", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    ran = run_bounded((str(path),), timeout_s=60)
    assert (ran.late, ran.code) == (True, None)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_program_that_ends_but_leaves_its_pipe_open_is_not_waited_for(tmp_path: Path) -> None:
    path = program(tmp_path / "x", "echo done; sleep 600 &")
    began = time.monotonic()
    ran = run_bounded((str(path),), timeout_s=300)
    assert (ran.code, ran.output) == (0, "done\n")
    assert time.monotonic() - began < 60


def test_output_is_bounded(tmp_path: Path) -> None:
    ran = run_bounded((str(program(tmp_path / "x", "yes")),), timeout_s=30, max_output_bytes=1000)
    assert ran.flooded
    assert len(ran.output) == 1000


def test_a_program_that_closes_its_output_and_goes_on_is_late(tmp_path: Path) -> None:
    ran = run_bounded((str(program(tmp_path / "x", "exec >&- 2>&-; sleep 600")),), timeout_s=0.3)
    assert ran.late


def test_what_cannot_be_started_is_said_not_raised(tmp_path: Path) -> None:
    assert run_bounded((str(tmp_path / "none"),), timeout_s=1).error is not None
    assert run_bounded(("a\0b",), timeout_s=1).error is not None
    assert run_program.MAX_OUTPUT_BYTES > 59_000  # llama-server's own help


def test_rpc_needs_both_the_flag_and_the_program(tmp_path: Path) -> None:
    without = Engine(("x",), None, None, None, "cpu", "PATH", 1, "", frozenset({"--rpc"}), (), True)
    assert not without.has_rpc
    assert replace(without, rpc_server=tmp_path).has_rpc
    assert not replace(without, rpc_server=tmp_path, flags=frozenset()).has_rpc
