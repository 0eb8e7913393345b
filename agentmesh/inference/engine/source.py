"""Gets llama.cpp's source: the pinned sdist through pip (so that the user's indexes and proxies hold), checked, unpacked.

Nothing of the sdist is run or unpacked before its SHA-256 is the pinned one; pip checks it too before it reads metadata.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, cast

from agentmesh.inference.engine.child import Stopped, run_logged
from agentmesh.inference.engine.errors import BuildFailed
from agentmesh.inference.engine.limits import (
    DOWNLOAD_TIMEOUT_S,
    MAX_SDIST_FILES,
    MAX_UNPACKED_BYTES,
    VENV_TIMEOUT_S,
)
from agentmesh.inference.engine.pin import PinnedSource


def check_sdist(path: Path, source: PinnedSource) -> None:
    """Raises:
    BuildFailed: the file cannot be read, or is not the pinned one.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BuildFailed(f"The source {path} cannot be read: {error.strerror}.") from error
    if found != source.sha256:
        raise BuildFailed(
            f"{path.name} is not the pinned source: its SHA-256 is {found}, and {source.sha256} was expected. "
            f"Nothing was unpacked. It must be the sdist of {source.distribution} {source.version}."
        )


def download_sdist(source: PinnedSource, work: Path, log: Path, environ: Mapping[str, str]) -> Path:
    """The pinned sdist, fetched into `work`.

    Raises:
        BuildFailed: there is no pip, or it could not fetch it; what it said is in the message and in `log`.
    """
    target = work / "sdist"
    target.mkdir()
    requirements = work / "requirements.txt"
    requirements.write_text(f"{source.distribution}=={source.version} --hash=sha256:{source.sha256}\n")
    command = (
        *_pip(work, log, environ),
        *("download", "--no-deps", "--no-binary", source.distribution, "--require-hashes"),
        *("-r", str(requirements), "-d", str(target), "--progress-bar", "off", "--disable-pip-version-check"),
    )
    ended = run_logged(command, log=log, environ=environ, timeout_s=DOWNLOAD_TIMEOUT_S)
    found = sorted(target.glob("*.tar.gz"))
    if ended.code != 0 or len(found) != 1:
        raise BuildFailed(_download_failed(source, ended))
    check_sdist(found[0], source)
    return found[0]


def _download_failed(source: PinnedSource, ended: Stopped) -> str:
    why = f"pip was not done after {DOWNLOAD_TIMEOUT_S:.0f} s" if ended.late else f"pip ended with {ended.code}"
    return (
        f"The source of llama.cpp ({source.distribution} {source.version}) could not be downloaded: {why}.\n"
        f"{ended.tail}\nWithout a connection: download that sdist elsewhere and give it with --sdist FILE."
    )


def _pip(work: Path, log: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """How to call pip: this Python's own; else that of a temporary environment (environments made by uv have none)."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    folder = work / "pip"
    made = run_logged((sys.executable, "-m", "venv", str(folder)), log=log, environ=environ, timeout_s=VENV_TIMEOUT_S)
    python = folder / "bin" / "python"
    if made.code == 0 and python.exists():
        return (str(python), "-m", "pip")
    if other := shutil.which("pip3", path=environ.get("PATH")):
        return (other,)
    raise BuildFailed(
        "There is no pip to download llama.cpp's source with: this Python environment has none (uv makes such), and a "
        "temporary one could not be made. Run `uv pip install pip`, or give the sdist with --sdist FILE."
    )


def unpack(sdist: Path, source: PinnedSource, target: Path, progress: Callable[[int], None]) -> None:
    """Unpack the parts that the build needs into `target`; `progress` gets the number of files so far.

    Raises:
        BuildFailed: the archive is damaged, leads out of `target`, holds links, or is too large.
    """
    files = size = 0
    try:
        with tarfile.open(sdist, "r:gz") as archive:
            for member in archive:
                inner = _wanted(member.name, source)
                if inner is None or member.isdir():
                    continue
                files, size = files + 1, size + member.size
                if not member.isreg() or files > MAX_SDIST_FILES or size > MAX_UNPACKED_BYTES:
                    raise BuildFailed(f"{sdist.name} holds what a source does not: {member.name}. Nothing was built.")
                _write(archive, member, target / inner)
                progress(files)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise BuildFailed(f"{sdist.name} could not be unpacked: {error}.") from error
    if not (target / "CMakeLists.txt").is_file():
        raise BuildFailed(f"{sdist.name} holds no llama.cpp under {source.folder}.")


def _wanted(name: str, source: PinnedSource) -> PurePosixPath | None:
    """The place of an archive's entry below llama.cpp's folder; None when it is not part of the build."""
    path = PurePosixPath(name)
    folder = PurePosixPath(source.folder)
    inner = path.parts[1 : 1 + len(folder.parts)]
    rest = path.parts[1 + len(folder.parts) :]
    if inner != folder.parts or not rest or rest[0] not in source.parts:
        return None
    if path.is_absolute() or ".." in path.parts or any("\\" in part or "\0" in part for part in path.parts):
        raise BuildFailed(f"The source holds a name that leads out of its folder: {name!r}. Nothing was built.")
    return PurePosixPath(*rest)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = cast("IO[bytes]", archive.extractfile(member))  # not None: a regular file
    with content, path.open("xb") as file:
        shutil.copyfileobj(content, file)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
