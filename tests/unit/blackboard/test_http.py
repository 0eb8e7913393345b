"""The board over HTTP: the shapes of the contract, and one sentence for everything that is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from agentmesh.blackboard.http import blackboard_router
from tests.fakes.board import SECRET, Board, open_board

ROOT = "/api/blackboard"


@asynccontextmanager
async def _client(folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Board, FastAPI]]:
    async with open_board(folder, per_minute=5) as board:
        app = FastAPI()
        app.include_router(blackboard_router(board.service))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as client:
            yield client, board, app


async def test_a_post_is_made_searched_listed_fetched_and_retracted(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _, _):
        body = {"text": f"TIP: [org/repo] use {SECRET}", "from": "Ann", "idempotency_key": "k"}
        posted = (await client.post(f"{ROOT}/post", json=body)).json()
        assert posted == {"id": posted["id"], "redactions": [{"kind": "PASSWORD", "count": 1}], "related": []}
        assert (await client.post(f"{ROOT}/post", json=body)).json() == posted
        expected = {
            "id": posted["id"],
            "kind": "TIP",
            "topic": "org/repo",
            "branch": None,
            "text": "TIP: [org/repo] use {{PASSWORD}}",
            "author": "Ann",
            "node_name": None,
            "created_at": 1_795_000_000_000,
            "expires_at": 1_795_000_000_000 + 48 * 3_600_000,
            "reply_to": None,
            "verified": True,
        }
        for path in (
            "search?query=use&kind=tip&author=Ann&topic=org/repo&since_hours=1&limit=5",
            "feed?thread=" + posted["id"],
        ):
            page = (await client.get(f"{ROOT}/{path}")).json()
            assert page["next_cursor"] is None
            assert [p | {} for p in page["posts"]] == [expected | {"node_id": page["posts"][0]["node_id"]}]
        assert (await client.get(f"{ROOT}/posts/{posted['id'][:8]}")).json()["author"] == "Ann"
        assert (await client.get(f"{ROOT}/topics")).json() == {"topics": ["org/repo"]}
        assert (await client.get(f"{ROOT}/authors")).json() == {"authors": ["Ann"]}
        assert (await client.delete(f"{ROOT}/posts/{posted['id'][:8]}")).json() == {
            "id": posted["id"],
            "retracted": True,
        }
        assert (await client.get(f"{ROOT}/posts/{posted['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/post", b"{", 400),
        ("POST", "/post", b"[]", 400),
        ("POST", "/post", b'{"text": 7}', 400),
        ("POST", "/post", b'{"texts": "x"}', 400),
        ("POST", "/post", b'{"text": ""}', 400),
        ("POST", "/post", b'{"text": "\\ud800"}', 400),
        ("POST", "/post", b'{"text": "\xff"}', 400),
        ("POST", "/post", b'{"text": "' + b"x" * 5_000 + b'"}', 400),
        ("POST", "/post", b'{"text": "' + b"x" * 70_000 + b'"}', 413),
        ("POST", "/post", b'{"text": "hi", "reply_to": "0123abcd"}', 404),
        ("GET", "/feed?limit=many", b"", 400),
        ("GET", "/feed?limit=0", b"", 400),
        ("GET", "/feed?limit=99999999999999999999", b"", 400),
        ("GET", "/feed?unread_only=maybe", b"", 400),
        ("GET", "/feed?unread_only=true", b"", 400),
        ("GET", "/feed?since_hours=x", b"", 400),
        ("GET", "/feed?wait_seconds=600", b"", 400),
        ("GET", "/search?query=x&cursor=zzz", b"", 400),
        ("GET", "/search?query=x&kind=rumour", b"", 400),
        ("GET", "/posts/zz", b"", 400),
        ("DELETE", "/posts/0123abcd", b"", 404),
    ],
)
async def test_everything_wrong_gets_one_sentence_in_the_contracts_shape(
    tmp_path: Path, method: str, path: str, content: bytes, status: int
) -> None:
    async with _client(tmp_path) as (client, _, _):
        answer = await client.request(method, ROOT + path, content=content)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"code", "message", "retryable"}
        assert error["message"].endswith(".")
        assert "\n" not in error["message"]


async def test_over_quota_is_429_and_says_that_it_may_be_tried_again(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, _, _):
        for number in range(6):
            answer = await client.post(f"{ROOT}/post", json={"text": f"post {number}"})
        assert answer.status_code == 429
        assert answer.json()["error"]["retryable"] is True


async def test_unread_pages_over_http_show_each_post_once(tmp_path: Path) -> None:
    async with _client(tmp_path) as (client, board, _):
        await board.see(*(board.peer_post(f"post {i}", hours_ago=i) for i in reversed(range(5))))
        seen: list[str] = []
        cursor = ""
        while True:
            params = {"unread_only": "true", "reader": "r", "limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get(f"{ROOT}/feed", params=params)).json()
            seen += [post["text"] for post in page["posts"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == [f"post {i}" for i in range(5)]


async def test_the_event_stream_replays_what_was_missed_and_goes_on(tmp_path: Path) -> None:
    async with _client(tmp_path) as (_, board, app):
        await board.service.post("missed")
        chunks: asyncio.Queue[bytes] = asyncio.Queue()
        begun: asyncio.Queue[int] = asyncio.Queue()
        leave = asyncio.Event()

        async def receive() -> dict[str, object]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                begun.put_nowait(int(str(message["status"])))
            elif body := message.get("body"):
                assert isinstance(body, bytes)
                chunks.put_nowait(body)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "GET",
            "path": f"{ROOT}/events",
            "raw_path": f"{ROOT}/events".encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(b"last-event-id", b"0")],
        }
        running = asyncio.ensure_future(app(scope, receive, send))  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            assert await begun.get() == 200
            assert (await chunks.get()).startswith(b":")
            first = (await chunks.get()).decode().splitlines()
            assert first[:2] == ["id: 1", "event: post"]
            assert json.loads(first[2].removeprefix("data: "))["text"] == "missed"
            await board.service.post("live")
            assert '"live"' in (await chunks.get()).decode()
            leave.set()
            await running
        assert board.service._live.subscribers == 0


async def test_the_routes_are_described_in_openapi(tmp_path: Path) -> None:
    async with _client(tmp_path) as (_, _, app):
        schema = app.openapi()
        assert {f"{ROOT}/{name}" for name in ("post", "search", "feed", "events", "topics", "authors")} <= set(
            schema["paths"]
        )
        assert "requestBody" in schema["paths"][f"{ROOT}/post"]["post"]
