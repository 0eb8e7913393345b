"""One holder at a time, and a dead holder holds nothing."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.control import lock as locks
from agentmesh.control.lock import FileLock, is_held, wait_until_free
from agentmesh.core.errors import HomeError

HOLDER = """
import sys, fcntl
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock.acquire(path) as held:  # type: ignore[union-attr]
        assert held is not None
        assert FileLock.acquire(path) is None
        assert not wait_until_free(path, 0.0)
    assert wait_until_free(path, 0.0)


def test_looking_at_a_lock_makes_no_file_and_two_who_look_see_no_holder_in_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists()
    path.touch()
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(path)
    with FileLock.acquire(path):  # type: ignore[union-attr]
        assert is_held(path)
    assert not is_held(path)
    assert wait_until_free(tmp_path / "a home that was deleted" / "lock", 0.0)


def test_where_the_file_system_has_no_locks_nobody_waits_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(HomeError, match="cannot be locked: Operation not supported"):
        FileLock.acquire(tmp_path / "lock", 60.0)


def test_a_killed_holder_frees_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    assert FileLock.acquire(path) is None
    holder.kill()
    assert wait_until_free(path, 60.0)
    holder.communicate(timeout=60)


def test_a_lock_file_that_was_removed_and_made_anew_is_locked_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock.acquire(path)
    path.unlink()
    second = FileLock.acquire(path)
    assert second is not None
    assert FileLock.acquire(path) is None
    first.release()  # type: ignore[union-attr]
    second.release()


def test_releasing_twice_does_not_free_a_descriptor_that_is_somebody_elses_by_now(tmp_path: Path) -> None:
    lock = FileLock.acquire(tmp_path / "one")
    assert lock is not None
    lock.release()
    with FileLock.acquire(tmp_path / "two"):  # type: ignore[union-attr] - takes the freed descriptor number
        lock.release()
        assert FileLock.acquire(tmp_path / "two") is None


@pytest.mark.parametrize("obstacle", ["folder", "link", "nothing above"])
def test_a_path_that_cannot_be_a_lock_is_said_to_be_so(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "lock"
    if obstacle == "folder":
        path.mkdir()
    elif obstacle == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "absent" / "lock"
    with pytest.raises(HomeError, match="lock"):
        FileLock.acquire(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_whose_file_was_replaced_is_no_longer_the_one_that_others_find(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock.acquire(path)
    assert lock is not None
    assert lock.is_current()
    path.unlink()
    assert not lock.is_current()
    path.touch()
    assert not lock.is_current()
    lock.release()
    assert not lock.is_current()
