"""`agentmesh blackboard` against a node of memory: what is asked, and what is printed."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.cli.blackboard import since_hours
from agentmesh.cli.main import run
from tests.fakes.board_node import BoardNode, Refusal


class Board:
    """A fake node in a thread of its own, and the command's output."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.node = BoardNode(home)
        self._capsys = capsys
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.do(self.node.__aenter__())

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self.do(self.node.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def cli(self, *arguments: str) -> tuple[int, str, str]:
        code = run(["blackboard", *arguments])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def board(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    home = Path(tempfile.mkdtemp(prefix="am-"))
    monkeypatch.setenv("AGENTMESH_HOME", str(home))
    made = Board(home, capsys)
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda data: monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_a_text_is_posted_and_its_short_id_printed(board: Board) -> None:
    code, out, _ = board.cli("STATUS:", "moving", "billing", "--topic", "acme/shop", "--from", "ada")
    post = board.node.posts[0]
    assert (code, out) == (0, f"Posted {post['id'][:8]}\n")
    assert (post["text"], post["topic"], post["author"]) == ("STATUS: moving billing", "acme/shop", "ada")


def test_the_authors_name_comes_from_the_environment(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMESH_AUTHOR", "grace")
    board.cli("hello")
    board.cli("hello", "--from", "ada")
    assert [post["author"] for post in board.node.posts] == ["grace", "ada"]


def test_a_post_prints_its_json(board: Board) -> None:
    board.cli("CLAIM: src/**")
    code, out, _ = board.cli("CLAIM: src/billing/**", "--json")
    value = json.loads(out)
    assert (code, value["id"], value["redactions"]) == (0, board.node.posts[1]["id"], [])
    assert [post["id"] for post in value["related"]] == [board.node.posts[0]["id"]]


def test_a_secret_of_this_process_never_reaches_the_node(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_API_KEY", "q7Rz93kfLp02xWv")
    _, out, _ = board.cli("it works with q7Rz93kfLp02xWv now", "--json")
    assert "q7Rz93kf" not in board.node.posts[0]["text"]
    assert sum(item["count"] for item in json.loads(out)["redactions"]) == 1


def test_text_comes_from_stdin(board: Board, stdin: Callable[[bytes], None]) -> None:
    stdin("FINDING: grün\nzwei\n".encode())
    assert board.cli("-")[0] == 0
    assert board.node.posts[0]["text"] == "FINDING: grün\nzwei"


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * 70_000, b""])
def test_stdin_that_is_no_text_is_refused(board: Board, stdin: Callable[[bytes], None], data: bytes) -> None:
    stdin(data)
    code, _, err = board.cli("-")
    assert (code, board.node.posts) == (2, [])
    assert len(err.strip().splitlines()) == 1


def test_a_post_whose_answer_was_lost_is_sent_again_and_counted_once(board: Board) -> None:
    board.node.lose_after = 1
    assert board.cli("once")[0] == 0
    board.node.lose_before = 1
    assert board.cli("twice")[0] == 0
    assert [post["text"] for post in board.node.posts] == ["once", "twice"]


def test_the_nodes_refusal_is_one_sentence(board: Board) -> None:
    board.node.refuse = Refusal(429, "quota_exceeded", "Too many posts; wait 20 s.", retryable=True)
    assert board.cli("hello") == (1, "", "agentmesh: Too many posts; wait 20 s.\n")


def test_without_text_the_feed_is_shown_newest_first(board: Board) -> None:
    board.cli("first")
    board.cli("TIP: second")
    code, out, _ = board.cli()
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"{board.node.posts[1]['id'][:8]} TIP")
    assert [line for line in lines if line.startswith("    ")] == ["    TIP: second", "    first"]


def test_filters_reach_the_node(board: Board) -> None:
    board.cli(
        "--kind",
        "tip",
        "--topic",
        "a/b",
        "--from",
        "ada",
        "--since",
        "30m",
        "--unanswered",
        "--limit",
        "7",
        "--thread",
        "ab12",
    )
    _, target = board.node.requests[-1]
    query = target.partition("?")[2].split("&")
    assert set(query) == {
        "kind=TIP", "topic=a%2Fb", "author=ada", "since_hours=0.5", "unanswered=true", "limit=7", "thread=ab12"
    }  # fmt: skip


def test_a_search_prints_json_with_a_cursor_to_go_on(board: Board) -> None:
    for number in range(3):
        board.cli(f"needle {number}")
    board.cli("hay")
    first = json.loads(board.cli("--search", "needle", "--limit", "2", "--json")[1])
    rest = json.loads(board.cli("--search", "needle", "--limit", "2", "--cursor", first["next_cursor"], "--json")[1])
    assert [post["text"] for post in first["posts"] + rest["posts"]] == ["needle 2", "needle 1", "needle 0"]
    assert rest["next_cursor"] is None


def test_unread_shows_everything_once_and_is_silent_after(board: Board) -> None:
    board.cli("news")
    assert "news" in board.cli("--unread")[1]
    assert board.cli("--unread") == (0, "", "")
    assert board.cli("--unread", "--json") == (0, "", "")


def test_two_agents_have_each_their_own_unread_posts(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.cli("news")
    for agent in ("ada", "grace"):
        monkeypatch.setenv("AGENTMESH_AUTHOR", agent)
        assert "news" in board.cli("--unread")[1]


def test_a_post_is_retracted_by_its_short_id(board: Board) -> None:
    board.cli("mistake")
    short = board.node.posts[0]["id"][:8]
    assert board.cli("--retract", short) == (0, f"Retracted {short}\n", "")
    assert board.node.posts == []


def test_an_unknown_post_is_named(board: Board) -> None:
    assert board.cli("--retract", "abcd1234") == (1, "", "agentmesh: There is no post abcd1234 here.\n")


@pytest.mark.parametrize(("text", "hours"), [("12", 12.0), ("0.5", 0.5), ("30m", 0.5), ("2d", 48.0), (None, None)])
def test_since_takes_hours_or_a_duration(text: str | None, hours: float | None) -> None:
    assert since_hours(text) == hours
