"""Who waits for a node that starts or ends is told what for; who does not wait long is told nothing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from agentmesh.control import lock as locks
from agentmesh.control import start
from agentmesh.control.lock import FileLock
from agentmesh.control.start import NOTICE_AFTER_S, START_TIMEOUT_S, ensure_node, request_if_present
from agentmesh.core.errors import NoNode
from agentmesh.core.paths import Home


class Clock:
    """Stands where the modules that wait have `time`; of what is waited for one is free after each `free_after_s`."""

    def __init__(self, held: list[FileLock], free_after_s: float) -> None:
        self.now_s, self._held, self._free_after_s = 0.0, held, free_after_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for number, lock in enumerate(self._held, 1):
            if self.now_s >= number * self._free_after_s:
                lock.release()


@pytest.fixture
def home(tmp_path) -> Home:
    made = Home(tmp_path)
    made.prepare()
    return made


@pytest.fixture
def taken() -> Iterator[list[FileLock]]:
    """What is held in a test is free after it."""
    made: list[FileLock] = []
    yield made
    for lock in made:
        lock.release()


def hold(home: Home, monkeypatch: pytest.MonkeyPatch, taken: list[FileLock], names: str, free_after_s: float) -> None:
    for name in names.split():
        held = FileLock.acquire(home.run / name)
        assert held is not None
        taken.append(held)
    clock = Clock(taken, free_after_s)
    for module in (start, locks):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))


@pytest.mark.parametrize(("waits_s", "notices"), [(NOTICE_AFTER_S - 1, 0), (NOTICE_AFTER_S + 1, 1), (20.0, 1)])
@pytest.mark.parametrize("names", ["lock", "start.lock"])
def test_a_request_that_waits_long_says_so_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, taken: list[FileLock], names: str, waits_s: float, notices: int
) -> None:
    hold(home, monkeypatch, taken, names, waits_s)
    said: list[str] = []
    assert request_if_present(home, "POST", "/api/node/stop", say=said.append) is None
    assert [text.startswith("waiting for the node of ") for text in said] == [True] * notices


@pytest.mark.parametrize(("waits_s", "notices"), [(NOTICE_AFTER_S - 1, 0), (20.0, 1), (START_TIMEOUT_S + 5, 1)])
@pytest.mark.parametrize("names", ["lock", "start.lock", "start.lock lock"])
def test_a_command_that_needs_a_node_says_once_that_it_waits_for_another(
    home: Home, monkeypatch: pytest.MonkeyPatch, taken: list[FileLock], names: str, waits_s: float, notices: int
) -> None:
    def never(_home: Home, _say: start.Say) -> None:
        raise NoNode("no node in this test")

    hold(home, monkeypatch, taken, names, waits_s)
    monkeypatch.setattr(start, "_start", never)
    said: list[str] = []
    stays = waits_s > START_TIMEOUT_S and names != "start.lock"
    with pytest.raises(NoNode, match="may still be looking" if stays else "no node in this test"):
        ensure_node(home, say=said.append)
    assert [text.startswith("waiting for the node of ") for text in said] == [True] * notices
