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
    r"(sse|ssse|avx|amx|fma|f16c|bmi|abm|lzcnt|popcnt|movbe|movdir|gfni|aes|vaes|pclmul|vpclmul|sha|adx|rdseed|rdrand"
    r"|clflushopt|clwb|xsave|serialize|tsxldtrk|fsgsbase|pku|xop|tbm|lwp|3dnow)\w*$"
)
CPUINFO: Final = Path("/proc/cpuinfo")


def features_in(cpuinfo: str) -> frozenset[str]:
    """The instruction sets named in the text of /proc/cpuinfo: `flags` on x86, `Features` on ARM (all of them)."""
    found = re.search(r"^(flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if found is None:
        return frozenset()
    names = found[2].split()
    return frozenset(names) if found[1] == "Features" else frozenset(n for n in names if _EMITTED.match(n))


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
