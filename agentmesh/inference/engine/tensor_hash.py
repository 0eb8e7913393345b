"""The small program that hashes tensors as llama.cpp's RPC client does: what it is called, and how `engine install` makes it.

Its source is tensor_hash.c beside this file. It lies beside llama-server; its name has a digest of the source, so that one of another
version of agentmesh is never taken for it. Everything works without it, only the first load of a split takes longer.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.inference.engine.child import run_logged
from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.limits import TENSOR_HASH_BUILD_S, TENSOR_HASH_CHECK_S

SOURCE: Final = "tensor_hash.c"
_COMPILERS: Final = ("cc", "gcc", "clang")
_BASIS: Final = 0xCBF29CE484222325
_PRIME: Final = 0x100000001B3


@functools.cache
def _source() -> bytes:
    return resources.files("agentmesh.inference.engine").joinpath(SOURCE).read_bytes()


@functools.cache
def program_name() -> str:
    """The program's name in a folder of engines."""
    return f"agentmesh-tensor-hash-{hashlib.sha256(_source()).hexdigest()[:8]}"


def fnv(data: bytes) -> int:
    """FNV-1a 64, as ggml-rpc.cpp's fnv_hash: slow, to check with."""
    value = _BASIS
    for byte in data:
        value = (value ^ byte) * _PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return value


def ensure_tensor_hash(
    folder: Path, home: Home, environ: Mapping[str, str], log: Path, say: Callable[[str], None]
) -> None:
    """Put the program into `folder`, the programs of a build, unless it is there: half a second. When that cannot be done, says why."""
    if (folder / program_name()).is_file():
        return
    try:
        home.prepare()  # the log goes there
        with tempfile.TemporaryDirectory(prefix="agentmesh-hash-", ignore_cleanup_errors=True) as name:
            program = _compile(Path(name), environ, log)
            _check(program)
            _put(program, folder / program_name())
    except (AgentMeshError, OSError) as error:
        why = error.message if isinstance(error, AgentMeshError) else f"{error.filename or folder}: {error.strerror}"
        say(f"without the program that hashes weights, each model's first load as a split takes longer: {why}")


def _compile(work: Path, environ: Mapping[str, str], log: Path) -> Path:
    source, program = work / SOURCE, work / "program"
    source.write_bytes(_source())
    compiler = shlex.split(environ.get("CC", "")) or _found(environ)
    command = (*compiler, "-O2", "-o", str(program), str(source))
    ended = run_logged(command, log=log, environ=environ, timeout_s=TENSOR_HASH_BUILD_S)
    if ended.code != 0:
        raise BuildFailed(f"{compiler[0]} could not compile it. {ended.tail}")
    return program


def _found(environ: Mapping[str, str]) -> list[str]:
    path = environ.get("PATH")
    for name in _COMPILERS:
        if found := shutil.which(name, path=path):
            return [found]
    raise BuildFailed("there is no C compiler (apt install gcc; macOS: xcode-select --install).")


def _check(program: Path) -> None:
    """It must hash its own source right. Raises: BuildFailed."""
    data = _source()
    ranges = [(0, len(data)), *((at, at % 97) for at in range(12))]
    try:
        ran = subprocess.run(
            [program, program.with_name(SOURCE)],
            input="".join(f"{at} {size}\n" for at, size in ranges).encode() + b"\n",
            capture_output=True,
            timeout=TENSOR_HASH_CHECK_S,
            check=False,
            env={},
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed("what was compiled hangs.") from None
    wanted = sorted(f"{at} {size} {fnv(data[at : at + size]):016x}" for at, size in ranges)
    if ran.returncode != 0 or sorted(ran.stdout.decode("ascii", "replace").splitlines()) != wanted:
        raise BuildFailed(f"what was compiled does not hash right (exit status {ran.returncode}).")


def _put(program: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        shutil.copyfile(program, beside)
        beside.chmod(0o755)
        beside.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
