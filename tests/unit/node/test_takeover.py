"""A node by hand comes to a home that another one holds: how long it waits, and what it says of that one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentmesh.control.lock import FileLock
from agentmesh.control.start import END_TIMEOUT_S, START_TIMEOUT_S
from agentmesh.core.errors import NodeRunning
from agentmesh.core.paths import Home
from agentmesh.node import takeover
from agentmesh.node.takeover import take_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.prepare()
    return made


def left_by_a_killed_node(home: Home) -> None:
    content = {"pid": os.getpid(), "version": "1", "background": False, "started_at": 0, "socket": "", "token": ""}
    home.node_json.write_text(json.dumps(content | {"console_port": 1, "bind_port": 1, "api_port": 1}))


@pytest.mark.parametrize("background", [False, True])
def test_what_a_killed_node_said_of_itself_is_gone_once_another_has_the_home(home: Home, background: bool) -> None:
    left_by_a_killed_node(home)
    held = take_home(home, background=background)
    assert not home.node_json.exists()
    with pytest.raises(NodeRunning) as refused:
        take_home(home, background=True)
    assert str(os.getpid()) not in refused.value.message
    held.release()


def test_a_node_that_is_asked_late_has_its_whole_time_to_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FileLock.acquire(home.lock)
    assert other is not None
    late, later = START_TIMEOUT_S - 0.1, START_TIMEOUT_S + END_TIMEOUT_S / 2
    moments = iter((0.0, late, late, later))

    def monotonic() -> float:
        now = next(moments)
        if now == later:
            other.release()
        return now

    def answers_at_last(_: Home) -> bool:  # until now it was starting
        return True

    monkeypatch.setattr(takeover, "GLANCE_S", 0.01)
    monkeypatch.setattr(takeover, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(takeover, "_asked_to_hand_over", answers_at_last)
    take_home(home, background=False).release()
    assert next(moments, None) is None
