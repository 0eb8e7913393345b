"""`agentmesh blackboard --mcp --http`: both protocol eras over loopback, and nobody without the node's token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client, MCPDeprecationWarning
from mcp.client.streamable_http import streamable_http_client

from tests.fakes.board_node import TOKEN, BoardNode

WAIT_S = 50.0  # below what a long poll waits, where one is open


@dataclass
class Endpoint:
    """The process under test and where it listens."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def client(self, mode: str, token: str = TOKEN) -> Client:
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=WAIT_S)
        return Client(streamable_http_client(self.url, http_client=http), mode=mode)

    async def post(self, headers: dict[str, str], body: Any = None) -> tuple[int, dict[str, str], str]:
        """One raw request, so that Host and Origin are what the test says."""
        data = json.dumps(body if body is not None else {"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
        fields = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Content-Length": str(len(data)),
            "Connection": "close",
            **headers,
        }
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        writer.write(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + data)
        async with asyncio.timeout(WAIT_S):
            answer = (await reader.read()).decode()
        writer.close()
        top, _, content = answer.partition("\r\n\r\n")
        status, *lines = top.split("\r\n")
        return int(status.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines), content


@contextlib.asynccontextmanager
async def start(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentmesh", "blackboard", "--mcp", "--http", *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def node() -> AsyncIterator[BoardNode]:
    async with BoardNode(Path(os.environ["AGENTMESH_HOME"])) as running:
        yield running


@pytest.fixture
async def endpoint(node: BoardNode) -> AsyncIterator[Endpoint]:
    async with start("0") as process:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            line = (await process.stderr.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/mcp", line)
        assert found is not None, line
        yield Endpoint(process, int(found[1]))


# ------------------------------------------------------------------ service


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
async def test_the_official_client_lists_and_calls_the_tools(endpoint: Endpoint, mode: str, version: str) -> None:
    async with asyncio.timeout(WAIT_S), endpoint.client(mode) as client:
        assert client.protocol_version == version
        assert len((await client.list_tools()).tools) == 3
        posted = await client.call_tool("blackboard_post", {"text": "FINDING: http works"})
        feed = await client.call_tool("blackboard_feed", {})
    assert [post["id"] for post in feed.structured_content["posts"]] == [posted.structured_content["id"]]


async def test_several_clients_are_served_at_once(endpoint: Endpoint, node: BoardNode) -> None:
    async def one(number: int) -> None:
        async with endpoint.client(("legacy", "auto")[number % 2]) as client:
            for _ in range(3):
                result = await client.call_tool("blackboard_post", {"text": f"from {number}"})
                assert result.is_error is False

    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(one(number) for number in range(6)))
    assert len(node.posts) == 18


async def test_a_client_that_hangs_up_leaves_the_nodes_long_poll(endpoint: Endpoint, node: BoardNode) -> None:
    async with endpoint.client("auto") as client:
        call = asyncio.ensure_future(client.call_tool("blackboard_feed", {"wait_seconds": 55}))
        async with asyncio.timeout(WAIT_S):
            while node.waiting == 0:
                await asyncio.sleep(0.01)
            call.cancel()
            while node.waiting:
                await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_changes_are_told_over_http_in_both_eras(endpoint: Endpoint, node: BoardNode) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.put_nowait(message.params.uri)

    older, newer = endpoint.client("legacy"), endpoint.client("auto")
    older.message_handler = on_message
    async with asyncio.timeout(WAIT_S), older, newer:
        with pytest.warns(MCPDeprecationWarning):
            await older.subscribe_resource("blackboard://topic/acme/shop")
        async with newer.listen(resource_subscriptions=["blackboard://topic/acme/shop"]) as events:
            while not any("/events" in target for _, target in node.requests):
                await asyncio.sleep(0.01)
            await node.add("elsewhere", topic="acme/api")
            await node.add("here", topic="acme/shop")
            assert (await anext(aiter(events))).uri == "blackboard://topic/acme/shop"
            assert await told.get() == "blackboard://topic/acme/shop"


async def test_it_ends_on_sigterm_though_clients_are_connected(endpoint: Endpoint) -> None:
    async with endpoint.client("legacy") as client:
        await client.list_tools()
        endpoint.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            await endpoint.process.wait()


async def test_nothing_is_printed_on_stdout(endpoint: Endpoint) -> None:
    async with endpoint.client("auto") as client:
        await client.call_tool("blackboard_feed", {})
    endpoint.process.terminate()
    assert endpoint.process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        assert await endpoint.process.stdout.read() == b""


# ------------------------------------------------------------------ who may


GOOD = f"Bearer {TOKEN}"


async def test_without_the_nodes_token_nothing_is_answered(endpoint: Endpoint) -> None:
    for wrong in ("", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, GOOD + "x", "Bearer \xff"):
        status, headers, body = await endpoint.post({"Authorization": wrong})
        assert (wrong, status) == (wrong, 401)
        assert headers["www-authenticate"] == "bearer"
        assert "run/node.json" in json.loads(body)["error"]["message"]


async def test_a_token_in_the_address_does_not_count(endpoint: Endpoint) -> None:
    async with httpx2.AsyncClient(timeout=WAIT_S) as http:
        answer = await http.post(f"{endpoint.url}?token={TOKEN}", json={})
    assert answer.status_code == 401


FOREIGN = (
    ({"Host": "evil.example"}, 421),
    ({"Host": "evil.example:80"}, 421),
    ({"Host": "127.0.0.1.evil.example:80"}, 421),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost.evil.example:80"}, 403),
)


async def test_web_pages_of_others_are_refused_even_with_the_token(endpoint: Endpoint) -> None:
    modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "ping"}
    for headers, expected in FOREIGN:
        for era_headers in ({}, modern):
            status, _, _ = await endpoint.post({"Authorization": GOOD, **era_headers, **headers})
            assert (headers, status) == (headers, expected)


async def test_pages_of_this_machine_are_served(endpoint: Endpoint) -> None:
    discover = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "server/discover",
        "params": {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            }
        },
    }
    headers = {"Authorization": GOOD, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "server/discover"}
    status, _, body = await endpoint.post({**headers, "Origin": f"http://localhost:{endpoint.port}"}, discover)
    assert status == 200
    assert "2026-07-28" in body


async def test_it_listens_on_loopback_only(endpoint: Endpoint) -> None:
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        if not str(address).startswith("127."):
            with pytest.raises(OSError):
                await asyncio.open_connection(str(address), endpoint.port)


async def test_a_new_token_of_a_restarted_node_is_taken_and_the_old_one_still_is(
    endpoint: Endpoint, node: BoardNode
) -> None:
    assert (await endpoint.post({"Authorization": GOOD}))[0] != 401
    new = "another-token-another-token-another"
    replacement = node.run / "node.json.new"
    replacement.write_text(json.dumps({"token": new}))
    replacement.replace(node.run / "node.json")
    assert (await endpoint.post({"Authorization": f"Bearer {new}"}))[0] != 401
    assert (await endpoint.post({"Authorization": GOOD}))[0] != 401
    (node.run / "node.json").write_text('{"token": ""}')
    assert (await endpoint.post({"Authorization": "Bearer "}))[0] == 401


# ------------------------------------------------------------------ starting


async def test_a_port_in_use_is_said_in_a_sentence(node: BoardNode) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with start(str(taken.getsockname()[1])) as process:
            async with asyncio.timeout(WAIT_S):
                _, errors = await process.communicate()
    assert process.returncode == 1
    assert "cannot be used" in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_without_a_node_it_exits_with_3_and_says_why() -> None:
    home = Path(os.environ["AGENTMESH_HOME"])
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where the home should be")
    async with start("0") as process:
        async with asyncio.timeout(WAIT_S):
            _, errors = await process.communicate()
    assert process.returncode == 3
    assert "Traceback" not in errors.decode()
