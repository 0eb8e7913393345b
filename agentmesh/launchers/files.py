"""Agents' configuration files: read whole, written whole or not at all, with the user's version kept beside.

Owns how a file of another program is touched: through links, with its mode, under a lock that other launchers of this user
take too, never when it does not parse (that is for the adapters to say), never when it changed meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Final, cast

from agentmesh.launchers.base import ConfigUnusable, Launch, PlannedFile

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
LOCK_TIMEOUT_S: Final = 5.0
LOCK_POLL_S: Final = 0.02
MAX_BACKUPS: Final = 100
MAX_PLANS: Final = 5  # how often the user's editor may come between reading and writing
BACKUP_SUFFIX: Final = ".agentmesh-backup"
NEW_FILE_MODE: Final = 0o600
NEW_FOLDER_MODE: Final = 0o700


def read(path: Path) -> str | None:
    """The file's text, None if there is none. Raises: ConfigUnusable: it is no regular readable UTF-8 file."""
    try:
        # O_NONBLOCK: else opening a pipe that nobody writes to never ends.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigUnusable(f"{path} is not a regular file.")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigUnusable(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigUnusable(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MiB; it is left as it is.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigUnusable(f"{path} is not UTF-8 (line {line}); it is left as it is. Repair it first.") from error


def read_all(paths: tuple[Path, ...]) -> dict[Path, str | None]:
    """The text of each."""
    return {path: read(path) for path in paths}


def apply(
    paths: tuple[Path, ...], plan: Callable[[Mapping[Path, str | None]], Launch], record: Path
) -> tuple[Launch, list[str]]:
    """Plan with what the files hold now and write what is planned; gives the launch and what the user should know.

    `record` is our own file, of the digests of what we wrote: a file that is still so needs no backup.

    Raises:
        ConfigUnusable: a file does not parse, cannot be written, or changes all the time.
    """
    launch = plan(read_all(paths))
    folders = sorted({Path(os.path.realpath(file.path)).parent for file in launch.files if file.changes})
    if not folders:
        return launch, []
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_locked(folder))
        for _ in range(MAX_PLANS):
            launch = plan(read_all(paths))
            changed = [file for file in launch.files if file.changes]
            if all(read(file.path) == file.old for file in changed):
                return launch, [note for file in changed for note in _write(file, record)]
    raise ConfigUnusable(f"{paths[0]} is being changed by another program; try again.")


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the lock on a folder, made if need be. A lock on the folder itself leaves no file behind."""
    try:
        folder.mkdir(mode=NEW_FOLDER_MODE, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigUnusable(f"The folder {folder} cannot be used: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise ConfigUnusable(f"Another program has been holding the folder {folder} for too long.")
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: then only the comparison before writing protects
        return True
    return True


def _write(file: PlannedFile, record: Path) -> list[str]:
    """Back up and replace one file. Raises: ConfigUnusable."""
    target = Path(os.path.realpath(file.path))
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if file.old is not None else NEW_FILE_MODE
        if file.old is not None and not os.access(target, os.W_OK):
            raise PermissionError(13, "it is write-protected")
        notes = _back_up(file, target, mode, record)
        _replace(target, file.content, mode)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigUnusable(f"{file.path} cannot be written: {reason}. It is as it was.") from error
    _remember(record, target, file.content)
    return notes


def _back_up(file: PlannedFile, target: Path, mode: int, record: Path) -> list[str]:
    """Keep what the user has, unless it is what we wrote ourselves or is kept already. Backups are never overwritten."""
    if file.old is None or _recorded(record).get(str(target)) == _digest(file.old):
        return []
    for number in range(1, MAX_BACKUPS):
        backup = target.with_name(target.name + BACKUP_SUFFIX + (f"-{number}" if number > 1 else ""))
        kept = read(backup)
        if kept == file.old:
            return []
        if kept is None:
            _replace(backup, file.old, mode)
            return [f"{file.path} gets a provider for the mesh; your version of it is kept as {backup.name}."]
    raise ConfigUnusable(f"There are {MAX_BACKUPS - 1} backups of {file.path}; remove some.")


def _replace(path: Path, content: str, mode: int) -> None:
    """The whole file or none of it. The temporary name ends so that no agent takes it for one of its files."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.agentmesh-new")
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode("utf-8"))
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _recorded(record: Path) -> dict[str, str]:
    """Digests by path; nothing when the record is missing or damaged: then there is one backup more."""
    try:
        value: object = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {str(name): str(digest) for name, digest in cast("dict[str, object]", value).items()}


def _remember(record: Path, target: Path, content: str) -> None:
    # Two launchers of different agents may lose one another's entry: one backup more, no harm.
    with contextlib.suppress(OSError):
        digests = {**_recorded(record), str(target): _digest(content)}
        record.parent.mkdir(mode=NEW_FOLDER_MODE, parents=True, exist_ok=True)
        _replace(record, json.dumps(digests, indent=2) + "\n", NEW_FILE_MODE)
