"""Every limit of finding, asking and building engines, with its reason. Times in seconds, sizes in bytes."""

from __future__ import annotations

from typing import Final

# ------------------------------------------------------------------ asking

PROBE_TIMEOUT_S: Final = 30.0  # a question; a CUDA start takes 1-5 s, with eight GPUs up to 15, the embedded engine 1
MAX_OUTPUT_BYTES: Final = 2 * 1024 * 1024  # of one answer; llama-server --help is 59 kB
LINGER_S: Final = 0.5  # output is awaited after a program's end: a child that it left may hold the pipe for ever
END_S: Final = 1.0  # for a program that nobody waits for any more to be ended: it is looked at every 50 ms
MAX_REMEMBERED: Final = 64  # engines whose answers are kept
MAX_PATH_FOLDERS: Final = 256  # entries of PATH that are searched
MAX_BUILDS: Final = 256  # looked at in one store
MAX_RECORD_BYTES: Final = 65_536  # build.json; ours is 2 kB
START_TIMEOUT_S: Final = 30.0  # until a server without a model is healthy; 0.1 s is usual
STOP_GRACE_S: Final = 5.0  # between SIGTERM and SIGKILL for it

# ------------------------------------------------------------------ hardware

TOOL_TIMEOUT_S: Final = 15.0  # nvidia-smi loads the driver first when nothing else uses it: 1-8 s
SYSCTL_TIMEOUT_S: Final = 5.0  # macOS answers at once
MAX_CARDS: Final = 64  # graphics cards looked at in /sys

# ------------------------------------------------------------------ building

LOCK_WAIT_S: Final = 3 * 3600.0  # for a build before ours; CUDA on a small machine takes over an hour
DOWNLOAD_TIMEOUT_S: Final = 1800.0  # 77 MB at 0.35 Mbit/s
VENV_TIMEOUT_S: Final = 120.0  # an environment with pip in it: 3-10 s
CONFIGURE_TIMEOUT_S: Final = 900.0  # 5 s here; tests of compilers on slow disks take minutes
BUILD_TIMEOUT_S: Final = 6 * 3600.0  # 6 minutes here for the CPU; CUDA for all GPUs on two cores takes hours
TENSOR_HASH_BUILD_S: Final = 120.0  # one small C file: 0.2 s; a first call of a compiler from a slow disk takes seconds
TENSOR_HASH_CHECK_S: Final = 20.0  # it hashes its own source: milliseconds
CHECK_TIMEOUT_S: Final = 60.0  # the new server's --version
GRACE_S: Final = 5.0  # between SIGTERM and SIGKILL for compilers; ninja needs under 1
MAX_SDIST_FILES: Final = 20_000  # 3,884 in 0.3.36
MAX_UNPACKED_BYTES: Final = 1 << 30  # 57 MB of parts in 0.3.36
CPU_BUILD_BYTES: Final = 600_000_000  # free on the disk: sdist 77 MB, source 57, build 107, and room for them to grow
CUDA_BUILD_BYTES: Final = 4_000_000_000  # guess: objects for several GPU generations
OTHER_BUILD_BYTES: Final = 2_000_000_000  # guess
MEMORY_PER_JOB_BYTES: Final = 1_500_000_000  # one g++ on the largest files takes about 1 GB; nvcc somewhat more
MAX_JOBS: Final = 64  # llama.cpp has some 200 files to compile
TAIL_LINES: Final = 12  # of a failed step, shown
MAX_ERROR_LINES: Final = 4  # the first ones that name an error, shown when the tail does not have them
MAX_LINE_BYTES: Final = 65_536  # of a step's output; linkers print lines of 20 kB
