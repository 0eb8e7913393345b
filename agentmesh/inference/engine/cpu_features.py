"""What instructions this machine's CPU has: a build for the local CPU (GGML_NATIVE) dies on one that lacks any of them."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import sys
from pathlib import Path
from typing import Final

from agentmesh.inference.engine.limits import SYSCTL_TIMEOUT_S
from agentmesh.inference.engine.run_program import run_bounded

# Only what compilers emit code for: kernels add flags for mitigations and timers, and an update of the kernel must not
# make a good build look foreign. The prefixes are those of GCC's x86 options (gcc.gnu.org, "x86 Options").
_EMITTED: Final = re.compile(
    r"(sse|ssse|avx|fma|f16c|bmi|abm|lzcnt|popcnt|movbe|movdir|gfni|aes|vaes|pclmul|vpclmul|sha|adx|rdseed|rdrand"
    r"|clflushopt|clwb|xsave|serialize|tsxldtrk|fsgsbase|pku|xop|tbm|lwp|3dnow)\w*$"
)
CPUINFO: Final = Path("/proc/cpuinfo")

# AMX is left out of every build: GCC before 11.5, 12.4 and 13.3 compiles ggml's tile configuration wrong (GCC bug 114098: the
# memory operand of `ldtilecfg` covers 8 of its 64 bytes), and the engine dies at the first quantised model (seen with 12.2).
_AMX: Final = re.compile(r"^flags\s*:.*\bamx_tile\b", re.MULTILINE)
# What -march=native, which would take AMX in, finds by itself: CMake option -> name in /proc/cpuinfo.
_NATIVE: Final = {
    "GGML_SSE42": "sse4_2",
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_BMI2": "bmi2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_AVX_VNNI": "avx_vnni",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}


def features_in(cpuinfo: str) -> frozenset[str]:
    """The instruction sets named in the text of /proc/cpuinfo: `flags` on x86, `Features` on ARM (all of them)."""
    found = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if found is None:
        return frozenset()
    names = found[2].split()
    return frozenset(names) if found[1] == "Features" else frozenset(n for n in names if _EMITTED.match(n))


def options_in(cpuinfo: str) -> tuple[str, ...]:
    """CMake options for the CPU of this /proc/cpuinfo beside a flavour's own: none, unless AMX must be kept out."""
    if not _AMX.search(cpuinfo):
        return ()
    found = features_in(cpuinfo)
    return (
        "-DGGML_NATIVE=OFF",
        *(f"-D{option}={'ON' if name in found else 'OFF'}" for option, name in _NATIVE.items()),
    )


@functools.cache
def cpu_options() -> tuple[str, ...]:
    """See options_in, for this machine."""
    try:
        return options_in(CPUINFO.read_text("utf-8", "replace"))
    except OSError:
        return ()


@functools.cache
def cpu_features() -> frozenset[str]:
    """The instruction sets of this machine; the processor's name where the system lists none."""
    found: frozenset[str] = frozenset()
    with contextlib.suppress(OSError):
        found = features_in(CPUINFO.read_text("utf-8", "replace"))
    if not found and sys.platform == "darwin":
        ran = run_bounded(("sysctl", "-n", "machdep.cpu.brand_string"), timeout_s=SYSCTL_TIMEOUT_S)
        found = frozenset({ran.output.strip()}) if ran.code == 0 else found
    return found or frozenset({platform.processor() or platform.machine()})
