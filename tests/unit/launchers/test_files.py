"""Other programs' files: whole or not at all, kept, never when they changed meanwhile."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agentmesh.launchers import files
from agentmesh.launchers.base import ConfigUnusable, Launch, PlannedFile

Plan = Callable[[Mapping[Path, "str | None"]], Launch]


def appending(path: Path, line: str) -> Plan:
    """A plan that adds a line to the file."""

    def plan(existing: Mapping[Path, str | None]) -> Launch:
        old = existing[path]
        return Launch(("x",), files=(PlannedFile(path, (old or "") + line, old),))

    return plan


def setting(path: Path, content: str) -> Plan:
    return lambda existing: Launch(("x",), files=(PlannedFile(path, content, existing[path]),))


def apply(path: Path, plan: Plan) -> list[str]:
    return files.apply((path,), plan, path.parents[1] / "home" / "launchers.json")[1]


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "agent").mkdir()
    return tmp_path / "agent" / "c.json"


def test_a_pipe_in_place_of_a_file_is_refused_at_once(config: Path) -> None:
    os.mkfifo(config)
    with pytest.raises(ConfigUnusable, match="not a regular file"):
        files.read(config)


def test_a_new_file_is_private_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    assert files.apply((path,), setting(path, "x"), tmp_path / "record.json")[1] == []
    assert path.read_text() == "x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path) == ["c.json"]


def test_the_users_version_is_kept_and_the_mode_stays(config: Path) -> None:
    config.write_text("mine")
    config.chmod(0o640)
    (note,) = apply(config, setting(config, "ours"))
    backup = config.with_name("c.json.agentmesh-backup")
    assert (config.read_text(), backup.read_text()) == ("ours", "mine")
    assert "c.json.agentmesh-backup" in note
    assert {stat.S_IMODE(path.stat().st_mode) for path in (config, backup)} == {0o640}


def test_what_we_wrote_ourselves_needs_no_backup(config: Path) -> None:
    config.write_text("mine")
    apply(config, setting(config, "ours"))
    assert apply(config, setting(config, "ours, newer")) == []
    assert names(config) == ["c.json", "c.json.agentmesh-backup"]
    assert config.with_name("c.json.agentmesh-backup").read_text() == "mine"


def test_a_later_change_by_the_user_is_kept_beside_the_older_backup(config: Path) -> None:
    config.write_text("mine")
    apply(config, setting(config, "ours"))
    config.write_text("ours, changed by me")
    (note,) = apply(config, setting(config, "ours again"))
    assert "c.json.agentmesh-backup-2" in note
    assert config.with_name("c.json.agentmesh-backup").read_text() == "mine"
    assert config.with_name("c.json.agentmesh-backup-2").read_text() == "ours, changed by me"


def test_the_same_version_is_kept_once(config: Path) -> None:
    for _ in range(3):
        config.write_text("mine")
        apply(config, setting(config, "ours"))
    assert names(config) == ["c.json", "c.json.agentmesh-backup"]


def test_too_many_backups_are_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BACKUPS", 2)
    for content in ("mine", "mine too"):
        config.write_text(content)
        if content == "mine":
            apply(config, setting(config, "ours"))
    with pytest.raises(ConfigUnusable, match="backups"):
        apply(config, setting(config, "ours"))
    assert config.read_text() == "mine too"


def test_a_file_that_needs_no_change_is_not_touched(config: Path) -> None:
    config.write_text("same")
    before = config.stat()
    assert apply(config, setting(config, "same")) == []
    assert (config.stat().st_mtime_ns, config.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert names(config) == ["c.json"]


def test_no_folder_is_made_for_a_file_that_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "settings.json"
    launch, _ = files.apply((path,), lambda existing: Launch((str(existing[path]),)), tmp_path / "r.json")
    assert launch.argv == ("None",)
    assert list(tmp_path.iterdir()) == [] or not path.parent.exists()


def test_a_link_stays_a_link(config: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "real.json"
    real.parent.mkdir()
    real.write_text("mine")
    config.symlink_to(real)
    apply(config, setting(config, "ours"))
    assert config.is_symlink()
    assert real.read_text() == "ours"
    assert names(real) == ["real.json", "real.json.agentmesh-backup"]


def test_a_plan_that_refuses_leaves_everything_as_it_was(config: Path) -> None:
    config.write_text("{ broken")

    def refuse(existing: Mapping[Path, str | None]) -> Launch:
        raise ConfigUnusable("does not parse")

    with pytest.raises(ConfigUnusable):
        apply(config, refuse)
    assert config.read_text() == "{ broken"
    assert names(config) == ["c.json"]


def test_a_failed_write_leaves_the_file_and_no_rubbish(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("mine")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigUnusable, match="No space left"):
        apply(config, setting(config, "ours"))
    assert config.read_text() == "mine"
    assert names(config) == ["c.json"]


def test_a_change_by_somebody_else_between_reading_and_writing_is_seen(config: Path) -> None:
    config.write_text("1")
    calls: list[str | None] = []

    def plan(existing: Mapping[Path, str | None]) -> Launch:
        calls.append(existing[config])
        if len(calls) == 2:  # the one under the lock
            config.write_text("2")
        return Launch(("x",), files=(PlannedFile(config, f"{existing[config]}+", existing[config]),))

    apply(config, plan)
    assert calls == ["1", "1", "2"]
    assert config.read_text() == "2+"


def test_a_file_that_changes_all_the_time_is_given_up(config: Path) -> None:
    config.write_text("0")
    count = iter(range(1, 100))

    def plan(existing: Mapping[Path, str | None]) -> Launch:
        config.write_text(str(next(count)))
        return Launch(("x",), files=(PlannedFile(config, "ours", existing[config]),))

    with pytest.raises(ConfigUnusable, match="being changed"):
        apply(config, plan)
    assert config.read_text().isdigit()


def test_many_launchers_at_once_lose_and_tear_nothing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT_S", 60.0)  # the last waits for seven disks' work
    config.write_text("start\n")
    errors: list[BaseException] = []

    def launch(number: int) -> None:
        try:
            apply(config, appending(config, f"launcher {number}\n"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(config.read_text().splitlines()) == sorted(["start", *(f"launcher {n}" for n in range(8))])


@pytest.mark.parametrize("content", [b"\xff\xfe{", b'{"a": "\xe4"}'])
def test_a_file_that_is_not_utf8_is_refused(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    with pytest.raises(ConfigUnusable, match=r"not UTF-8 \(line 1\)"):
        files.read(config)


def test_what_is_no_file_is_refused(config: Path) -> None:
    config.mkdir()
    with pytest.raises(ConfigUnusable):
        files.read(config)


def test_a_file_of_absurd_size_is_refused(config: Path) -> None:
    with config.open("wb") as file:
        file.truncate(files.MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigUnusable, match="larger than 4 MiB"):
        files.read(config)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_record_costs_no_more_than_a_backup(config: Path, damage: str) -> None:
    config.write_text("mine")
    apply(config, setting(config, "ours"))
    record = config.parents[1] / "home" / "launchers.json"
    record.write_text(damage)
    apply(config, setting(config, "ours 2"))
    assert config.read_text() == "ours 2"
    assert json.loads(record.read_text())[str(config)]
