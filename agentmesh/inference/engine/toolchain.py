"""Which tools a build needs and has, and which flavour suits the machine. Looks at names and files; starts nothing."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.limits import MAX_JOBS, MEMORY_PER_JOB_BYTES

CUDA_FOLDERS: Final = ("/usr/local/cuda", "/opt/cuda")
ROCM_FOLDERS: Final = ("/opt/rocm",)

_PACKAGES: Final = {
    "cmake": "cmake (apt install cmake; dnf install cmake; brew install cmake)",
    "compiler": "a C++ compiler (apt install build-essential; dnf install gcc-c++; macOS: xcode-select --install)",
    "make": "ninja or make (apt install ninja-build; dnf install ninja-build; brew install ninja)",
    "nvcc": "nvcc of the CUDA toolkit (apt install nvidia-cuda-toolkit, or NVIDIA's own packages)",
    "hipcc": "hipcc of ROCm (apt install rocm-hip-sdk, or AMD's own packages)",
    "glslc": "glslc and the Vulkan headers (apt install glslc libvulkan-dev spirv-headers; macOS: the LunarG SDK)",
}
# Said when CMake cannot configure a flavour whose compiler is there.
ALSO_NEEDED: Final = {
    "cuda": "The cuda flavour needs the whole CUDA toolkit: cuBLAS with its headers too.",
    "rocm": "The rocm flavour needs hipBLAS and rocBLAS with their headers too.",
    "vulkan": "The vulkan flavour needs the headers of Vulkan and SPIR-V too (libvulkan-dev, spirv-headers).",
}


@dataclass(frozen=True)
class Toolchain:
    """What a build runs: `environ` is the user's, with a CUDA or ROCm folder added to PATH when only that has the tool."""

    cmake: str
    generator: str | None  # None: CMake's own choice
    environ: Mapping[str, str]


def _tool(name: str, environ: Mapping[str, str], folders: tuple[str, ...] = ()) -> str | None:
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    for folder in () if found else folders:
        found = found or shutil.which(name, path=f"{folder}/bin")
    return found


def _has_gpu(pattern: str) -> bool:
    return bool(glob.glob(pattern))  # noqa: PTH207 - a pattern from the root


def _has_amd_gpu() -> bool:
    for vendor in Path("/sys/class/drm").glob("card*/device/vendor"):
        try:
            if vendor.read_text().strip() == "0x1002":  # AMD's PCI vendor number
                return True
        except OSError:
            continue
    return False


def detect_flavor(environ: Mapping[str, str], *, system: str = sys.platform) -> tuple[str, str]:
    """The flavour that suits this machine, and why. An accelerator counts only with the tools to build for it."""
    if system == "darwin":
        if platform.machine() == "arm64":
            return "metal", "macOS on Apple silicon"
        return "cpu", "macOS on an Intel processor"
    if _has_gpu("/dev/nvidia[0-9]*") or _has_gpu("/dev/dxg"):
        if _tool("nvcc", environ, CUDA_FOLDERS):
            return "cuda", "there is an NVIDIA GPU and nvcc"
        return "cpu", "there is an NVIDIA GPU, but no nvcc: install the CUDA toolkit to use it"
    if _has_amd_gpu():
        if _tool("hipcc", environ, ROCM_FOLDERS):
            return "rocm", "there is an AMD GPU and hipcc"
        if _tool("glslc", environ):
            return "vulkan", "there is an AMD GPU, and the Vulkan SDK"
        return "cpu", "there is an AMD GPU, but neither ROCm nor the Vulkan SDK to build for it"
    if _has_gpu("/dev/dri/renderD*") and _tool("glslc", environ):
        return "vulkan", "there is a GPU and the Vulkan SDK"
    return "cpu", "no GPU was found"


def find_toolchain(flavor: str, environ: Mapping[str, str]) -> Toolchain:
    """The tools to build `flavor` with.

    Raises:
        BuildFailed: some are missing; the message names the packages.
    """
    folders = {"cuda": CUDA_FOLDERS, "rocm": ROCM_FOLDERS}.get(flavor, ())
    special = {"cuda": "nvcc", "rocm": "hipcc", "vulkan": "glslc"}.get(flavor)
    cmake = _tool("cmake", environ)
    ninja = _tool("ninja", environ)
    compiler = environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if _tool(c, environ)), None)
    missing = [
        name
        for name, there in (
            ("cmake", cmake),
            ("compiler", compiler),
            ("make", ninja or _tool("make", environ)),
            (special or "", special is None or _tool(special, environ, folders)),
        )
        if not there
    ]
    if missing or cmake is None:
        wanted = "; ".join(_PACKAGES[name] for name in missing)
        raise BuildFailed(f"To build the {flavor} engine, this machine needs {wanted}. Then run the command again.")
    path = environ.get("PATH", os.defpath)
    if special and not shutil.which(special, path=path):
        path = os.pathsep.join([*(f"{folder}/bin" for folder in folders if Path(folder, "bin").is_dir()), path])
    return Toolchain(cmake, "Ninja" if ninja else None, {**environ, "PATH": path})


def default_jobs() -> int:
    """Compilers to run at once: one for each CPU that this process may use, as far as the free memory carries them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_memory = psutil.virtual_memory().available // MEMORY_PER_JOB_BYTES
    return max(1, min(usable, by_memory, MAX_JOBS))
