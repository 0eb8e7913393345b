"""What a client knows before it starts a node: versions, tokens, and what a failed start said."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentmesh.control import start
from agentmesh.control.lock import FileLock
from agentmesh.control.node_environment import node_environment
from agentmesh.control.start import (
    END_TIMEOUT_S,
    PROBE_TIMEOUT_S,
    START_TIMEOUT_S,
    STARTER_TIMEOUT_S,
    await_report,
    parse_version,
    request_if_present,
    start_failure,
)
from agentmesh.control.tokens import join_tokens
from agentmesh.core.errors import NoNode, TokenError
from agentmesh.core.paths import Home
from agentmesh.node.membership import BACKGROUND_JOIN_S
from agentmesh.node.process import STOP_TIMEOUT_S


@pytest.mark.parametrize(
    ("older", "newer"),
    [("0.1.0", "0.2.0"), ("0.9.0", "0.10.0"), ("0.1", "0.1.1"), ("", "0.1.0"), ("1.2.3rc1", "1.2.4")],
)
def test_versions_are_compared_by_their_numbers(older: str, newer: str) -> None:
    assert parse_version(older) < parse_version(newer)
    assert not parse_version(newer) < parse_version(older)


def piped(*lines: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, b"".join(lines))
    os.close(writing)
    return reading


def test_a_report_is_read_after_the_process_id() -> None:
    assert await_report(piped(b'{"pid": 7}\n', b'{"ready": true, "notes": ["x"]}\n')) == (
        {"ready": True, "notes": ["x"]},
        7,
    )


def test_a_node_that_ends_without_a_report_is_noticed_at_once() -> None:
    assert await_report(piped(b'{"pid": 7}\n')) == (None, 7)
    assert await_report(piped()) == (None, None)


def test_a_node_that_takes_too_long_is_not_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = iter([0.0, 0.0, 1.0])  # what is there is read, then the time is over
    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: next(clock_s)))
    reading, writing = os.pipe()
    os.write(writing, b'{"pid": 7}\n')
    with pytest.raises(NoNode, match=r"process 7\) is not ready .* and goes on"):
        await_report(reading, timeout_s=0.5)
    os.close(writing)


def test_the_bounds_of_starts_and_ends_fit_each_other() -> None:
    assert STOP_TIMEOUT_S < END_TIMEOUT_S
    assert BACKGROUND_JOIN_S + END_TIMEOUT_S < START_TIMEOUT_S  # the reason why it did not join is heard
    by_hand = START_TIMEOUT_S + 2 * PROBE_TIMEOUT_S + END_TIMEOUT_S  # until it has the home's lock; then it starts
    assert by_hand + START_TIMEOUT_S <= STARTER_TIMEOUT_S
    assert (
        3 * START_TIMEOUT_S + END_TIMEOUT_S + 3 * PROBE_TIMEOUT_S < STARTER_TIMEOUT_S
    )  # a command: see _ensure_while_locked


@pytest.mark.parametrize("lock", ["lock", "start.lock"])
def test_who_asks_a_node_that_ends_or_does_not_come_up_waits_for_that_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    home = Home(tmp_path)
    home.prepare()
    with pytest.raises(NoNode, match="No agentmesh node runs"):
        request_if_present(home, "POST", "/api/node/stop")
    held = FileLock.acquire(home.run / lock)
    assert held is not None
    waited_s: list[float] = []

    def sleep(seconds: float) -> None:
        waited_s.append(seconds)
        if len(waited_s) == 3:
            held.release()

    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    assert request_if_present(home, "POST", "/api/node/stop") is None
    assert len(waited_s) == 3


def test_who_asks_a_node_that_never_answers_is_told_so_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    home.prepare()
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(start, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=sleep))
    held = FileLock.acquire(home.lock)
    assert held is not None
    with held, pytest.raises(NoNode, match="may still be looking for its mesh"):
        request_if_present(home, "POST", "/api/node/stop")
    assert now_s == START_TIMEOUT_S


def test_a_refused_token_stays_a_refused_token(tmp_path: Path) -> None:
    error = start_failure({"error": {"code": "token_error", "message": "It is cut off."}}, tmp_path / "log", 0)
    assert isinstance(error, TokenError)


def test_any_other_reason_means_that_no_node_could_be_started(tmp_path: Path) -> None:
    error = start_failure({"error": {"code": "port_in_use", "message": "Port 1 is in use."}}, tmp_path / "log", 0)
    assert isinstance(error, NoNode)
    assert "Port 1 is in use." in error.message


def test_a_node_that_crashed_leaves_the_end_of_its_own_log_and_no_earlier_one(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("an older story\n")
    before = log.stat().st_size
    with log.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(9))
    message = start_failure(None, log, before).message
    assert "line 8" in message
    assert "line 3" not in message
    assert "older" not in message


def test_tokens_come_from_the_command_line_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTMESH_JOIN", "amesh1.env")
    (tmp_path / "token").write_text("amesh1.file\namesh1.second\n")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"amesh1.stdin\n")))
    given = ("amesh1.arg", f"@{tmp_path / 'token'}", "-")
    assert join_tokens(given) == ("amesh1.arg", "amesh1.file", "amesh1.second", "amesh1.stdin")


def test_without_an_option_the_environment_gives_the_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert join_tokens(()) == ()
    (tmp_path / "token").write_text("amesh1.file\n")
    monkeypatch.setenv("AGENTMESH_JOIN", f"amesh1.env @{tmp_path / 'token'}")
    assert join_tokens(()) == ("amesh1.env", "amesh1.file")


@pytest.mark.parametrize("source", ["@/no/such/file", "-"])
def test_a_source_without_a_token_is_named(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b" \n")))
    with pytest.raises(TokenError):
        join_tokens((source,))


def test_a_background_node_gets_no_secret_of_its_starters_environment(tmp_path: Path) -> None:
    own = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "OPENAI_API_KEY": "x",
        "AGENTMESH_JOIN": "amesh1.x",
        "AGENTMESH_AUTHOR": "ada",
        "SSH_AUTH_SOCK": "/x",
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "AGENTMESH_BIND_HOST": "127.0.0.1",
    }
    given = node_environment(own, Home(tmp_path))
    assert set(given) - {"PYTHONPATH"} == {"PATH", "LC_ALL", "AGENTMESH_BIND_HOST", "AGENTMESH_HOME"}
    assert given["AGENTMESH_HOME"] == str(tmp_path)


def test_a_node_in_the_background_finds_the_engine_and_the_models_that_its_starter_would(tmp_path: Path) -> None:
    places = {"AGENTMESH_BIN_DIR": "/e", "AGENTMESH_ENGINE_CACHE": "/c", "HF_HOME": "/m", "HF_HUB_CACHE": "/h"}
    places |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": "/x", "CUDA_VISIBLE_DEVICES": "1"}
    given = node_environment({**places, "HF_TOKEN": "hf_secret", "AGENTMESH_API_KEY": "secret"}, Home(tmp_path))
    assert places.items() <= given.items()
    assert not {"HF_TOKEN", "AGENTMESH_API_KEY"} & set(given)
