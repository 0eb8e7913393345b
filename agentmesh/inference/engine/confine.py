"""Starts a program that may do little: reads no file of a user, writes none, connects to nobody, listens on one port. Linux, Landlock.

    python -I -S confine.py --port P --home H… -- COMMAND…

It becomes the program (exec), so its process id stays. Standard library only and few imports: it runs before each RPC server. Where the
kernel cannot do it, the program runs all the same; the first line of output says which it is. docs/splits.md says what is prevented.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Final

SAID: Final = "agentmesh: confinement: "
NONE: Final = "none"
EXIT_NOT_STARTED: Final = 127

# linux/landlock.h; the numbers of the calls are the same on every architecture that we run on.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULESET_VERSION: Final = 1
RULE_PATH, RULE_PORT = 1, 2
PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the others are of folders
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPES: Final = 0b11  # abstract Unix sockets, signals: none to processes outside

READ: Final = EXECUTE | READ_FILE | READ_DIR
USE: Final = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV

# Where programs, libraries and drivers lie, and what drivers and the C library look at.
SYSTEM: Final = (
    *("/usr", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store", "/run/opengl-driver", "/sys"),
    *(
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/etc/localtime",
        "/etc/nsswitch.conf",
        "/etc/passwd",
    ),
    *("/etc/OpenCL", "/etc/vulkan", "/etc/glvnd", "/etc/nvidia", "/etc/drirc", "/etc/alternatives"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/devices"),
    *("/proc/modules", "/proc/driver", "/proc/sys"),
)
DEVICES: Final = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg", "/dev/mali*", "/dev/accel"),
    "/proc/self",  # CUDA names its threads there, and gives up where it cannot
)
MAX_ENTRIES: Final = 10_000  # of a folder that holds a home


def rights_of(abi: int) -> int:
    """Every file right that this version of Landlock knows: what is not granted is denied."""
    return (1 << (16 if abi >= 5 else 15 if abi >= 3 else 14 if abi == 2 else 13)) - 1


def readable(program: str, homes: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Paths that the program may read: the system's, its own folder and its libraries', nothing of a home.

    A program that lies directly in a home gets itself and the libraries beside it.
    """
    homes = [os.path.realpath(home) for home in homes]
    program = os.path.realpath(program)
    folder = os.path.dirname(program)  # noqa: PTH120 - pathlib costs 5 ms
    own = [folder, os.path.join(os.path.dirname(folder), "lib")]  # noqa: PTH118, PTH120
    own += [path for path in environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    paths = [path for each in SYSTEM for path in _without(each, homes)]
    for path in own:
        if not _holds(path, homes):
            paths.append(path)
        else:
            paths += glob.glob(os.path.join(glob.escape(path), "*.so*"))  # noqa: PTH118, PTH207
    return [*paths, program]


def _without(path: str, homes: Sequence[str]) -> Iterator[str]:
    """The path, or what is in it save for the way to a home."""
    if not _holds(path, homes):
        yield path
    elif os.path.realpath(path) not in homes:
        with contextlib.suppress(OSError):
            for name in os.listdir(path)[:MAX_ENTRIES]:  # noqa: PTH208
                yield from _without(os.path.join(path, name), homes)  # noqa: PTH118


def _holds(path: str, homes: Sequence[str]) -> bool:
    """Whether a home is this folder or lies below it."""
    real = os.path.realpath(path)
    return any(os.path.commonpath((real, home)) == real for home in homes)


class Landlock:
    """The kernel's calls. Raises OSError where it refuses."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self.abi = self._call(CREATE_RULESET, None, 0, RULESET_VERSION)

    def _call(self, number: int, *arguments: object) -> int:
        result = int(self._library.syscall(ctypes.c_long(number), *arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def restrict(self, reading: Sequence[str], using: Sequence[str], port: int) -> None:
        """Give up everything but these paths and listening on the port. For good, and for all that is started."""
        rights = rights_of(self.abi)
        net = BIND_TCP | CONNECT_TCP if self.abi >= 4 else 0
        ruleset = struct.pack("=QQQ", rights, net, SCOPES if self.abi >= 6 else 0)
        size = 24 if self.abi >= 6 else 16 if self.abi >= 4 else 8
        descriptor = self._call(CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0)
        for path in reading:
            self._allow(descriptor, path, READ & rights)
        for path in using:
            self._allow(descriptor, path, USE & rights)
        if net:
            self._call(ADD_RULE, descriptor, RULE_PORT, struct.pack("=QQ", BIND_TCP, port), 0)
        if self._library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._call(RESTRICT_SELF, descriptor, 0)
        os.close(descriptor)

    def _allow(self, ruleset: int, path: str, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return  # not on this machine
        try:
            rights &= ~0 if os.path.isdir(path) else FILE_RIGHTS  # noqa: PTH112
            self._call(ADD_RULE, ruleset, RULE_PATH, struct.pack("=Qi", rights, descriptor), 0)
        finally:
            os.close(descriptor)


def confine(program: str, homes: Sequence[str], port: int) -> str:
    """Confine this process. Returns what holds from now on, or why nothing does."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a host's texts are in its memory
    if sys.platform != "linux":
        return f"{NONE}: only Linux can"
    try:
        landlock = Landlock()
        using = [path for pattern in DEVICES for path in glob.glob(pattern)]  # noqa: PTH207
        landlock.restrict(readable(program, homes, os.environ), using, port)
    except (OSError, AttributeError) as error:
        return f"{NONE}: this kernel has no Landlock ({error})"
    network = ", connects to nobody" if landlock.abi >= 4 else ""
    return f"Landlock {landlock.abi}: reads no user's files, writes none{network}"


def main(words: Sequence[str]) -> int:
    split = list(words).index("--")
    options = list(zip(words[:split:2], words[1:split:2], strict=True))
    homes = [value for name, value in options if name == "--home"]
    command = list(words[split + 1 :])
    held = confine(command[0], homes, int(dict(options)["--port"]))
    os.write(2, f"{SAID}{held}\n".encode())
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        os.write(2, f"{command[0]} cannot be executed: {error.strerror}\n".encode())
        return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
