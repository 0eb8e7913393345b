"""Where engines are found, in which order, and which are left out."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import msgspec
import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.engine import locate, store
from agentmesh.inference.engine.cpu_features import cpu_features, features_in
from agentmesh.inference.engine.engine import EngineSearch
from agentmesh.inference.engine.errors import UnknownFlavor
from agentmesh.inference.engine.locate import find_engines, foreign_builds
from agentmesh.inference.engine.pin import load_pin
from agentmesh.inference.engine.store import BuildRecord, build_key
from tests.fakes.engine_programs import program, server


@pytest.fixture(autouse=True)
def _no_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "EMBEDDED_PACKAGE", "no_such_package_here")


def built(place: Path, name: str, **changes: object) -> Path:
    """A build in a store, as `engine install` leaves it."""
    record = BuildRecord("cpu", load_pin().source.commit, "", sys.platform, platform.machine(), (), (), 100, 1.0)
    folder = place / name
    server(folder / "bin" / "llama-server")
    (folder / "build.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **changes)))
    return folder


def search(tmp_path: Path, bin_dir: Path | None = None, flavor: str | None = None, **environ: str) -> EngineSearch:
    return EngineSearch(bin_dir, Home(tmp_path / "home"), flavor, {"PATH": "", **environ})


def places(found: EngineSearch) -> list[str]:
    return [str(engine.program) for engine in find_engines(found)]


def test_the_order_is_bin_dir_environment_installed_path_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "EMBEDDED_PACKAGE", "json")
    for name in ("one", "two", "four"):
        server(tmp_path / name / "llama-server")
    built(tmp_path / "home" / "engine", "three")
    wanted = search(tmp_path, tmp_path / "one", AGENTMESH_BIN_DIR=str(tmp_path / "two"), PATH=f"{tmp_path / 'four'}")
    found = find_engines(wanted)
    assert [engine.origin for engine in found] == [
        "--bin-dir",
        "AGENTMESH_BIN_DIR",
        "engine install",
        "PATH",
        "embedded",
    ]
    assert found[-1].command == (sys.executable, "-P", "-m", "agentmesh.inference.engine.embedded")
    assert found[-1].is_embedded


def test_one_program_that_is_found_twice_is_listed_once_where_it_is_preferred(tmp_path: Path) -> None:
    real = server(tmp_path / "real" / "llama-server")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "llama-server").symlink_to(real)
    wanted = search(tmp_path, tmp_path / "linked", PATH=str(tmp_path / "real"))
    assert [engine.origin for engine in find_engines(wanted)] == ["--bin-dir"]


def test_relative_entries_of_path_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server(tmp_path / "llama-server")
    monkeypatch.chdir(tmp_path)
    assert places(search(tmp_path, PATH=".::")) == []


@pytest.mark.parametrize("below", ["", "bin", "build/bin"])
def test_a_named_folder_may_be_an_installation_or_a_build_tree(tmp_path: Path, below: str) -> None:
    there = server(tmp_path / "llama" / below / "llama-server")
    assert places(search(tmp_path, tmp_path / "llama")) == [str(there)]


def test_programs_beside_the_server_belong_to_it(tmp_path: Path) -> None:
    server(tmp_path / "llama-server")
    rpc = program(tmp_path / "rpc-server", "")  # as older builds call it
    split = program(tmp_path / "llama-gguf-split", "")
    imatrix = program(tmp_path / "llama-imatrix", "")
    (found,) = find_engines(search(tmp_path, tmp_path))
    assert (found.rpc_server, found.gguf_split, found.imatrix) == (rpc, split, imatrix)
    newer = program(tmp_path / "ggml-rpc-server", "")
    (found,) = find_engines(search(tmp_path, tmp_path))
    assert found.rpc_server == newer


def test_a_flavour_picks_the_program_of_its_name_and_that_ones_rpc_server(tmp_path: Path) -> None:
    plain, cuda = server(tmp_path / "llama-server"), server(tmp_path / "llama-server-cuda")
    server(tmp_path / "llama-server-vulkan")
    program(tmp_path / "ggml-rpc-server", "")
    rpc = program(tmp_path / "rpc-server-cuda", "")
    first, second = find_engines(search(tmp_path, tmp_path, "cuda"))
    assert (first.program, first.flavor, first.rpc_server) == (cuda, "cuda", rpc)
    assert (second.program, second.flavor) == (plain, "")  # it may be of that flavour too; the probe tells


def test_without_a_flavour_the_plain_name_comes_first(tmp_path: Path) -> None:
    cuda, plain = server(tmp_path / "llama-server-cuda"), server(tmp_path / "llama-server")
    assert places(search(tmp_path, tmp_path)) == [str(plain), str(cuda)]


def test_installed_builds_come_pinned_first_then_accelerators_then_newest(tmp_path: Path) -> None:
    home = tmp_path / "home" / "engine"
    built(home, "old-cuda", flavor="cuda", commit="fffffff")
    built(home, "cpu-earlier", built_at=1)
    built(home, "cpu-later", built_at=2)
    built(home, "vulkan", flavor="vulkan")
    names = [Path(place).parents[1].name for place in places(search(tmp_path))]
    assert names == ["vulkan", "cpu-later", "cpu-earlier", "old-cuda"]
    assert [Path(p).parents[1].name for p in places(search(tmp_path, flavor="cuda"))] == ["old-cuda"]


def test_the_shared_store_is_searched_after_the_homes(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    built(shared, "same")
    wanted = search(tmp_path, AGENTMESH_ENGINE_CACHE=str(shared))
    assert places(wanted) == [str(shared / "same/bin/llama-server")]
    built(tmp_path / "home" / "engine", "same")
    assert places(wanted) == [str(tmp_path / "home/engine/same/bin/llama-server")]


def test_builds_for_another_cpu_or_system_are_left_out_and_reported(tmp_path: Path) -> None:
    home = tmp_path / "home" / "engine"
    built(home, "cpu", cpu_features=(*sorted(cpu_features()), "avx9000"))
    built(home, "system", system="plan9")
    assert places(search(tmp_path)) == []
    reasons = dict(foreign_builds(search(tmp_path)))
    assert "avx9000" in reasons[home / "cpu"]
    assert "plan9" in reasons[home / "system"]


def test_a_build_for_a_lesser_cpu_runs_here(tmp_path: Path) -> None:
    built(tmp_path / "home" / "engine", "cpu", cpu_features=tuple(sorted(cpu_features()))[:1])
    assert len(places(search(tmp_path))) == 1


@pytest.mark.parametrize("damage", ["no record", "garbage", "huge", "no server", "hidden"])
def test_damaged_builds_are_passed_over(tmp_path: Path, damage: str) -> None:
    home = tmp_path / "home" / "engine"
    folder = built(home, ".work-1" if damage == "hidden" else "one")
    record = folder / "build.json"
    match damage:
        case "no record":
            record.unlink()
        case "garbage":
            record.write_bytes(b"\xff{")
        case "huge":
            record.write_bytes(record.read_bytes() + b" " * store.MAX_RECORD_BYTES)
        case "no server":
            (folder / "bin/llama-server").unlink()
        case _:
            pass
    assert places(search(tmp_path)) == []


def test_folders_that_cannot_be_read_hold_no_engines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = search(
        tmp_path, tmp_path / "file", AGENTMESH_BIN_DIR=str(tmp_path / "none"), PATH=f"{tmp_path}/no:{tmp_path}/file"
    )
    assert places(wanted) == []


def test_the_key_names_what_makes_builds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pin = load_pin()
    key = build_key(pin, "cpu")
    assert key.startswith(f"{pin.source.commit}-cpu-{platform.machine()}-")
    options = msgspec.structs.replace(pin.build, options=(*pin.build.options, "-DX=1"))
    others = {
        build_key(pin, "cuda"),
        build_key(msgspec.structs.replace(pin, build=options), "cpu"),
        build_key(msgspec.structs.replace(pin, source=msgspec.structs.replace(pin.source, sha256="0")), "cpu"),
    }
    monkeypatch.setattr(store, "cpu_features", lambda: frozenset({"sse"}))
    others.add(build_key(pin, "cpu"))
    assert len(others | {key}) == 5
    with pytest.raises(UnknownFlavor, match="cpu, cuda, metal, rocm, vulkan"):
        build_key(pin, "tpu")


def test_cpu_features_are_the_ones_that_compilers_use() -> None:
    text = "processor : 0\nflags\t\t: fpu sse sse2 avx2 md_clear flush_l1d avx512_bf16\nflags : other\n"
    assert features_in(text) == {"sse", "sse2", "avx2", "avx512_bf16"}
    assert features_in("Features\t: fp asimd sve\n") == {"fp", "asimd", "sve"}
    assert features_in("nothing") == frozenset()
