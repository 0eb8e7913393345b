"""Who waits for a node that starts or ends is told what for; who does not wait long is told nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agentmesh.control import lock as locks
from agentmesh.control import start
from agentmesh.control.lock import FileLock
from agentmesh.control.start import NOTICE_AFTER_S, START_TIMEOUT_S, ensure_node, request_if_present
from agentmesh.core.errors import NoNode
from agentmesh.core.paths import Home


class Clock:
    """Stands where the modules that wait have `time`; what is waited for is free after `free_after_s`."""

    def __init__(self, held: FileLock, free_after_s: float) -> None:
        self.now_s, self._held, self._free_after_s = 0.0, held, free_after_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.now_s >= self._free_after_s:
            self._held.release()


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path)
    made.prepare()
    return made


def hold(home: Home, monkeypatch: pytest.MonkeyPatch, name: str, free_after_s: float) -> None:
    held = FileLock.acquire(home.run / name)
    assert held is not None
    clock = Clock(held, free_after_s)
    for module in (start, locks):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))


@pytest.mark.parametrize(("waits_s", "notices"), [(NOTICE_AFTER_S - 1, 0), (NOTICE_AFTER_S + 1, 1), (20.0, 1)])
@pytest.mark.parametrize("name", ["lock", "start.lock"])
def test_a_request_that_waits_long_says_so_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, waits_s: float, notices: int
) -> None:
    hold(home, monkeypatch, name, waits_s)
    said: list[str] = []
    assert request_if_present(home, "POST", "/api/node/stop", say=said.append) is None
    assert [text.startswith("waiting for the node of ") for text in said] == [True] * notices


@pytest.mark.parametrize(("waits_s", "notices"), [(NOTICE_AFTER_S - 1, 0), (20.0, 1), (START_TIMEOUT_S + 5, 1)])
@pytest.mark.parametrize("name", ["lock", "start.lock"])
def test_a_command_that_needs_a_node_says_once_that_it_waits_for_another(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, waits_s: float, notices: int
) -> None:
    def never(_home: Home, _say: start.Say) -> None:
        raise NoNode("no node in this test")

    hold(home, monkeypatch, name, waits_s)
    monkeypatch.setattr(start, "_start", never)
    said: list[str] = []
    with pytest.raises(NoNode):
        ensure_node(home, say=said.append)
    assert [text.startswith("waiting for the node of ") for text in said] == [True] * notices
