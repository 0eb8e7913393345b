"""Which tools are asked for, and which flavour suits a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agentmesh.inference.engine import toolchain
from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.toolchain import default_jobs, detect_flavor, find_toolchain
from tests.fakes.engine_programs import program

Tools = Callable[..., dict[str, str]]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """An environment in which only the named programs exist."""
    monkeypatch.setattr(toolchain, "CUDA_FOLDERS", (str(tmp_path / "cuda"),))
    monkeypatch.setattr(toolchain, "ROCM_FOLDERS", (str(tmp_path / "rocm"),))

    def make(*names: str) -> dict[str, str]:
        for name in names:
            program(tmp_path / "bin" / name, "")
        return {"PATH": str(tmp_path / "bin")}

    return make


@pytest.mark.parametrize(
    ("there", "flavor", "asked"),
    [
        (("c++", "ninja"), "cpu", "apt install cmake"),
        (("cmake", "ninja"), "cpu", "apt install build-essential"),
        (("cmake", "c++"), "cpu", "apt install ninja-build"),
        (("cmake", "c++", "make"), "cuda", "CUDA toolkit"),
        (("cmake", "c++", "make"), "rocm", "ROCm"),
        (("cmake", "c++", "make"), "vulkan", "glslc"),
        ((), "cpu", "build-essential"),
    ],
)
def test_missing_tools_are_named_with_their_packages(
    tools: Tools, there: tuple[str, ...], flavor: str, asked: str
) -> None:
    with pytest.raises(BuildFailed, match=asked):
        find_toolchain(flavor, tools(*there))


def test_ninja_is_used_when_there_is_one_else_cmake_chooses(tools: Tools) -> None:
    assert find_toolchain("cpu", tools("cmake", "g++", "make")).generator is None
    assert find_toolchain("cpu", tools("ninja")).generator == "Ninja"


def test_the_compiler_may_be_named_by_cxx(tools: Tools) -> None:
    assert find_toolchain("cpu", {**tools("cmake", "make"), "CXX": "/opt/c++"}).cmake.endswith("cmake")


def test_cuda_outside_of_path_is_found_and_put_on_the_builds_path(tools: Tools, tmp_path: Path) -> None:
    program(tmp_path / "cuda" / "bin" / "nvcc", "")
    environ = tools("cmake", "c++", "make")
    found = find_toolchain("cuda", environ)
    assert found.environ["PATH"].split(":") == [str(tmp_path / "cuda" / "bin"), environ["PATH"]]


@pytest.mark.parametrize(
    ("gpu", "there", "flavor"),
    [
        ("/dev/nvidia[0-9]*", ("nvcc",), "cuda"),
        ("/dev/nvidia[0-9]*", (), "cpu"),
        ("/dev/dxg", ("nvcc",), "cuda"),  # Windows' subsystem for Linux
        ("/dev/dri/renderD*", ("glslc",), "vulkan"),
        ("/dev/dri/renderD*", (), "cpu"),
        ("none", ("nvcc", "hipcc", "glslc"), "cpu"),  # tools without a GPU make no flavour
    ],
)
def test_an_accelerator_counts_only_with_the_tools_to_build_for_it(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, gpu: str, there: tuple[str, ...], flavor: str
) -> None:
    monkeypatch.setattr(toolchain, "_has_gpu", lambda pattern: pattern == gpu)
    monkeypatch.setattr(toolchain, "_has_amd_gpu", lambda: False)
    assert detect_flavor(tools(*there), system="linux")[0] == flavor


@pytest.mark.parametrize(("there", "flavor"), [(("hipcc", "glslc"), "rocm"), (("glslc",), "vulkan"), ((), "cpu")])
def test_amd_cards_use_rocm_then_vulkan(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], flavor: str
) -> None:
    monkeypatch.setattr(toolchain, "_has_gpu", lambda _: False)
    monkeypatch.setattr(toolchain, "_has_amd_gpu", lambda: True)
    assert detect_flavor(tools(*there), system="linux")[0] == flavor


@pytest.mark.parametrize(("machine", "flavor"), [("arm64", "metal"), ("x86_64", "cpu")])
def test_macs_with_apple_silicon_use_metal(monkeypatch: pytest.MonkeyPatch, machine: str, flavor: str) -> None:
    monkeypatch.setattr(toolchain.platform, "machine", lambda: machine)
    assert detect_flavor({}, system="darwin")[0] == flavor


@pytest.mark.parametrize(("cpus", "free_bytes", "jobs"), [(8, 64e9, 8), (8, 4e9, 2), (8, 1e6, 1), (500, 1e13, 64)])
def test_no_more_compilers_run_than_cpus_and_memory_carry(
    monkeypatch: pytest.MonkeyPatch, cpus: int, free_bytes: float, jobs: int
) -> None:
    class Memory:
        available = int(free_bytes)

    monkeypatch.setattr(toolchain.os, "sched_getaffinity", lambda _: range(cpus), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert default_jobs() == jobs
