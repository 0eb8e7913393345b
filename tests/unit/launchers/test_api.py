"""Finding the API and waiting for its models; ending what was started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from agentmesh.control import start
from agentmesh.control.client import NodeClient
from agentmesh.control.errors import NodeSilent
from agentmesh.core.errors import InvalidInput, NoNode, NotFound
from agentmesh.core.paths import Home
from agentmesh.launchers import api
from agentmesh.launchers.api import Api, FoundApi, ModelWait, release, running_api, start_api
from agentmesh.launchers.base import LauncherError, MeshModel, NoModel
from tests.fakes.model_api import ModelApi, model

A, B = MeshModel("a", parameters=3), MeshModel("b", parameters=70)
LOADING = MeshModel("b", parameters=70, ready=False)
Answer = tuple[MeshModel, ...] | None


class FakeNode:
    """Stands for a NodeClient: answers by path, remembers what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def request(self, method: str, path: str, *, timeout_s: float = 0) -> dict[str, Any]:
        self.asked.append(path)
        answer = self.answers.get(path.rpartition("/")[2], {})
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def client(self) -> NodeClient:
        return cast("NodeClient", self)


class Waiting:
    """A ModelWait over a script of answers (the last one repeats), on a clock that only sleeping moves."""

    def __init__(self, answers: Sequence[tuple[float, Answer]]) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self._answers = answers
        self.wait = ModelWait(self._ask, self.said.append, monotonic=lambda: self.now, sleep=self._sleep)

    def _ask(self) -> Answer:
        return [answer for since, answer in self._answers if since <= self.now][-1]

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


# ------------------------------------------------------------------ waiting


def test_known_models_are_taken_at_once() -> None:
    waiting = Waiting([(0, (A, B))])
    assert waiting.wait.choose(None, fresh=False) == ((A, B), B)
    assert (waiting.now, waiting.said) == (0, [])


def test_a_fresh_node_is_given_time_to_hear_of_the_meshs_models() -> None:
    waiting = Waiting([(0, ()), (3, (A,)), (3.5, (A, B))])
    assert waiting.wait.choose(None, fresh=True)[1] == B
    assert 3.5 <= waiting.now <= 6
    assert "up to 10 s" in waiting.said[0]


def test_a_fresh_node_is_given_time_for_the_model_that_was_named() -> None:
    waiting = Waiting([(0, (A,)), (5, (A, B))])
    assert waiting.wait.choose("b", fresh=True)[1] == B


def test_with_no_model_anywhere_a_fresh_node_is_given_up_after_its_time() -> None:
    waiting = Waiting([(0, ())])
    with pytest.raises(NoModel) as refused:
        waiting.wait.choose(None, fresh=True)
    assert api.FRESH_WAIT_S <= waiting.now < api.FRESH_WAIT_S + 1
    assert refused.value.exit_code == 3
    for command in ("agentmesh --model qwen2.5-3b", "agentmesh --join TOKEN --client"):
        assert command in refused.value.message


def test_with_no_model_on_a_node_that_runs_nothing_is_waited_for() -> None:
    waiting = Waiting([(0, ())])
    with pytest.raises(NoModel):
        waiting.wait.choose("x", fresh=False)
    assert waiting.now == 0


def test_an_unknown_model_is_said_at_once() -> None:
    with pytest.raises(InvalidInput, match="no model 'c'"):
        Waiting([(0, (A, B))]).wait.choose("c", fresh=False)


def test_a_model_that_is_being_loaded_is_waited_for() -> None:
    waiting = Waiting([(0, (LOADING,)), (20, (B,))])
    assert waiting.wait.choose("b", fresh=False) == ((B,), B)
    assert "b to be loaded" in waiting.said[0]


def test_a_ready_model_goes_before_one_that_is_being_loaded() -> None:
    assert Waiting([(0, (A, LOADING))]).wait.choose(None, fresh=False)[1] == A


def test_a_model_that_does_not_get_ready_is_given_up() -> None:
    waiting = Waiting([(0, (LOADING,))])
    with pytest.raises(NoModel, match="still being loaded"):
        waiting.wait.choose(None, fresh=False)
    assert api.LOADING_WAIT_S <= waiting.now < api.LOADING_WAIT_S + 1


def test_an_api_that_does_not_answer_is_not_an_empty_mesh() -> None:
    with pytest.raises(LauncherError, match="does not answer"):
        Waiting([(0, None)]).wait.choose(None, fresh=False)


# ------------------------------------------------------------------ finding


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "h")


def status(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | Exception) -> None:
    def request(self: NodeClient, method: str, path: str, **_: Any) -> dict[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(NodeClient, "request", request)


def test_the_homes_node_goes_before_the_port(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    status(monkeypatch, {"api_port": 4711})
    said: list[str] = []
    with ModelApi([model("x")]) as other:
        found = running_api(home, other.port, None, said.append)
    assert found is not None
    assert (found.base_url, found.started) == ("http://127.0.0.1:4711", False)
    assert f"not --port {other.port}" in said[0]


def test_without_a_node_what_answers_on_the_port_is_used(home: Home) -> None:
    with ModelApi([model("x")]) as other:
        assert running_api(home, other.port, None, print) == FoundApi(other.url)


def test_a_node_without_an_api_is_no_hindrance(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    status(monkeypatch, {"api_port": None})
    with ModelApi([model("x")]) as other:
        assert running_api(home, other.port, None, print) == FoundApi(other.url)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"data": 3}', b"[" * 100_000])
def test_something_else_on_the_port_is_no_api(home: Home, answer: bytes) -> None:
    with ModelApi([], answer=answer) as other:
        assert running_api(home, other.port, None, print) is None


def test_nothing_on_the_port_is_no_api(home: Home) -> None:
    with ModelApi([]) as closed:
        port = closed.port
    assert running_api(home, port, None, print) is None


def test_a_node_that_hangs_is_said_and_not_passed_over(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    status(monkeypatch, NodeSilent())
    with pytest.raises(NodeSilent):
        running_api(home, None, None, print)


def test_a_key_is_sent_and_a_wrong_or_missing_one_is_said() -> None:
    with ModelApi([model("x")], key="the key of this one") as guarded:
        models = Api(guarded.url, "the key of this one").models()
        assert models is not None
        assert [each.id for each in models] == ["x"]
        with pytest.raises(LauncherError, match="set AGENTMESH_API_KEY"):
            Api(guarded.url, None).models()
        with pytest.raises(LauncherError, match="not for the one in"):
            Api(guarded.url, "another").models()


@pytest.mark.parametrize(
    ("lines", "started"), [(["started a node in the background (process 1)", "note"], True), ([], False)]
)
def test_who_started_the_node_knows_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, lines: list[str], started: bool
) -> None:
    def ensure(given: Home, *, say: Callable[[str], None]) -> NodeClient:
        for line in lines:
            say(line)
        return NodeClient(given)

    monkeypatch.setattr(api, "ensure_node", ensure)
    status(monkeypatch, {"api_port": 4711})
    said: list[str] = []
    assert start_api(home, said.append).started is started
    assert len(said) == 1


def test_the_sentence_by_which_a_start_is_known_is_the_one_that_is_said() -> None:
    import inspect

    assert 'f"started a node' in inspect.getsource(start)


@pytest.mark.parametrize(
    ("answer", "said"), [({"api_port": None}, "no model API"), (NodeSilent(), "did not answer in time")]
)
def test_a_started_node_without_an_api_is_a_failure_and_ends(
    home: Home, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | Exception, said: str
) -> None:
    released: list[bool] = []
    monkeypatch.setattr(api, "ensure_node", lambda given, say: (say("started a node"), NodeClient(given))[1])
    monkeypatch.setattr(api, "release", lambda found, say: released.append(found.started))
    status(monkeypatch, answer)
    with pytest.raises(NoNode, match=said):
        start_api(home, print)
    assert released == [True]


# ------------------------------------------------------------------ afterwards


def ended(node: FakeNode, *, started: bool = True) -> tuple[bool, list[str]]:
    said: list[str] = []
    release(FoundApi("http://127.0.0.1:1", node.client, started), said.append, sleep=lambda _: None)
    return "/api/node/stop" in node.asked, said


def test_the_node_that_was_started_ends() -> None:
    assert ended(FakeNode(models=NotFound(), node={"clients": 0})) == (True, [])
    assert ended(FakeNode(models={"models": []}, node={})) == (True, [])


def test_a_node_that_somebody_else_started_stays() -> None:
    node = FakeNode()
    assert ended(node, started=False) == (False, [])
    assert node.asked == []


def test_a_node_that_another_client_uses_stays() -> None:
    stopped, said = ended(FakeNode(models={"models": []}, node={"clients": 1}))
    assert not stopped
    assert "another client" in said[0]
    assert "agentmesh stop" in said[0]


def test_a_node_that_does_not_answer_is_not_said_to_be_gone() -> None:
    stopped, said = ended(FakeNode(models=NodeSilent()))
    assert not stopped
    assert "stays in the background" in said[0]
    assert ended(FakeNode(models=NoNode())) == (False, [])


def test_a_client_that_is_just_leaving_is_waited_for() -> None:
    assert ended(FakeNode(models={}, node=[{"clients": 1}, {"clients": 1}, {"clients": 0}])) == (True, [])


def test_a_node_that_serves_models_stays() -> None:
    stopped, said = ended(FakeNode(models={"models": [{"id": "x"}]}, node={"clients": 0}))
    assert not stopped
    assert "serves models" in said[0]


@pytest.mark.parametrize("error", [NoNode(), LauncherError("odd")])
def test_a_node_that_is_gone_or_odd_does_not_spoil_the_agents_end(error: Exception) -> None:
    stopped, said = ended(FakeNode(models={"models": []}, node=error))
    assert not stopped
    assert bool(said) == isinstance(error, LauncherError)


def test_without_a_node_there_is_nothing_to_end() -> None:
    release(FoundApi("http://127.0.0.1:1", None, False), print)
