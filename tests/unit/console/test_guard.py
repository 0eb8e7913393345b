"""Who may call the management API over TCP, and how much may be sent to it."""

from __future__ import annotations

import asyncio
import json

import pytest

from agentmesh.console.guard import MAX_BODY_BYTES, Activity, BodyLimit, Guard, Message, Receive, Scope, Send
from agentmesh.core.tasks import TaskSet

TOKEN = "t0ken" * 8
GOOD = {"host": "127.0.0.1:3131", "authorization": f"Bearer {TOKEN}"}


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


async def call(
    app, headers: dict[str, str], path: str = "/api/status", chunks: tuple[bytes, ...] = (b"",)
) -> tuple[int, bytes]:
    sent: list[Message] = []
    waiting = list(chunks)

    async def receive() -> Message:
        chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await app({"type": "http", "path": path, "headers": raw}, receive, send)
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize("host", ["127.0.0.1:3131", "localhost", "LOCALHOST:1", "[::1]:3131"])
async def test_a_loopback_host_with_the_token_is_let_in(host: str) -> None:
    assert (await call(Guard(reached, TOKEN), {**GOOD, "host": host}))[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost:3131.evil.example", "10.0.0.1:3131", "", "localhost:port"],
)
async def test_another_host_is_refused_with_a_sentence(host: str) -> None:
    status, body = await call(Guard(reached, TOKEN), {**GOOD, "host": host})
    assert status == 403
    assert "Host" in json.loads(body)["error"]["message"]


async def test_a_request_without_a_host_is_refused() -> None:
    assert (await call(Guard(reached, TOKEN), {"authorization": GOOD["authorization"]}))[0] == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://10.0.0.1"])
async def test_a_web_page_of_another_host_is_refused_even_with_the_token(origin: str) -> None:
    assert (await call(Guard(reached, TOKEN), {**GOOD, "origin": origin}))[0] == 403


async def test_a_web_page_of_this_machine_is_let_in_with_the_token_only() -> None:
    headers = {**GOOD, "origin": "http://localhost:3131"}
    assert (await call(Guard(reached, TOKEN), headers))[0] == 200
    del headers["authorization"]
    assert (await call(Guard(reached, TOKEN), headers))[0] == 401


@pytest.mark.parametrize(
    "given", ["", "Bearer ", f"bearer {TOKEN}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xff"]
)
async def test_a_wrong_token_is_told_where_the_right_one_is(given: str) -> None:
    status, body = await call(Guard(reached, TOKEN), {**GOOD, "authorization": given})
    assert status == 401
    assert "node.json" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json"])
async def test_what_says_nothing_of_the_board_needs_no_token(path: str) -> None:
    assert (await call(Guard(reached, TOKEN), {"host": "localhost"}, path))[0] == 200


async def test_a_body_at_the_limit_passes_and_one_beyond_it_does_not() -> None:
    at_limit = b"x" * MAX_BODY_BYTES
    status, body = await call(BodyLimit(reached), {"content-length": str(MAX_BODY_BYTES)}, chunks=(at_limit,))
    assert (status, body) == (200, str(MAX_BODY_BYTES).encode())
    assert (await call(BodyLimit(reached), {"content-length": str(MAX_BODY_BYTES + 1)}))[0] == 413


async def test_a_body_that_does_not_say_its_length_is_cut_off_at_the_limit() -> None:
    half = b"x" * (MAX_BODY_BYTES // 2)
    _, body = await call(BodyLimit(reached), {}, chunks=(half, half, half, half))
    assert int(body) <= MAX_BODY_BYTES


async def test_idleness_counts_from_the_end_of_the_last_request_and_ignores_monitors() -> None:
    now = 100.0
    activity = Activity(reached, lambda: now)
    now = 160.0
    await call(activity, {}, "/healthz")
    assert activity.idle_s() == 60.0
    await call(activity, {}, "/api/status")
    assert activity.idle_s() == 0.0
    now = 165.0
    assert activity.idle_s() == 5.0


async def test_a_node_with_a_request_in_progress_is_not_idle() -> None:
    now, seen = 0.0, []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal now
        now = 500.0
        seen.append(activity.idle_s())
        await reached(scope, receive, send)

    activity = Activity(slow, lambda: now)
    await call(activity, {})
    assert seen == [0.0]


async def cancelled_while(path: str, query: bytes, *, started: bool) -> list[Message]:
    """What a client is sent when the node stops while its request waits."""
    sent: list[Message] = []
    waiting = asyncio.Event()

    async def wait_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        waiting.set()
        await asyncio.Event().wait()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    activity, tasks = Activity(wait_for_ever), TaskSet("test")
    request = activity({"type": "http", "path": path, "headers": [], "query_string": query}, receive, send)
    task = tasks.spawn(request, name="request")
    await waiting.wait()
    activity.end_waiting()
    await asyncio.wait([task], timeout=30.0)
    assert task.done()
    return sent


async def test_a_long_poll_ends_with_the_node_and_is_told_to_look_for_the_next_one() -> None:
    sent = await cancelled_while("/api/blackboard/feed", b"wait_seconds=55", started=False)
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"] == {
        "code": "node_stopping",
        "message": "The node is stopping.",
        "retryable": True,
    }


async def test_an_event_stream_ends_with_the_node_as_if_it_were_over() -> None:
    sent = await cancelled_while("/api/blackboard/events", b"", started=True)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert not sent[1].get("more_body")
