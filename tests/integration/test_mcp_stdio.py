"""`agentmesh blackboard --mcp` as a process: what is on its stdout, what it survives, and that it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters

from agentmesh.blackboard.logic import mcp_limits
from tests.fakes.board_node import BoardNode

COMMAND = [sys.executable, "-m", "agentmesh", "blackboard", "--mcp"]
WAIT_S = 50.0  # a start takes about a second, and several on a loaded machine
END_S = 15.0  # for an end that waits for nothing: below every time-out of what it could wait for
# The same command, for requests that are in flight when its input ends: however slow the machine is, they get their time.
UNHURRIED = (
    "import sys; from agentmesh.blackboard.logic import mcp_limits; mcp_limits.EOF_GRACE_S = 600.0; "
    "from agentmesh.cli.main import main; sys.exit(main())"
)
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test-agent", "version": "1"},
}


@pytest.fixture
async def node() -> AsyncIterator[BoardNode]:
    async with BoardNode(Path(os.environ["AGENTMESH_HOME"])) as running:
        yield running


class Server:
    """The process under test, spoken to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._id = 0

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def request(self, method: str, params: dict[str, Any]) -> int:
        self._id += 1
        self.write(json.dumps({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}).encode() + b"\n")
        return self._id

    async def answer(self) -> dict[str, Any]:
        """The next line of its stdout, which must be a JSON-RPC message."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            line = await self.process.stdout.readline()
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        return message

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = self.request(method, params)
        answer = await self.answer()
        assert answer["id"] == number
        return answer

    async def initialize(self) -> dict[str, Any]:
        answer = await self.call("initialize", INITIALIZE)
        self.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        return answer["result"]

    async def feed(self, **arguments: Any) -> dict[str, Any]:
        return await self.call("tools/call", {"name": "blackboard_feed", "arguments": arguments})

    async def ended(self, within_s: float) -> int:
        async with asyncio.timeout(within_s):
            return await self.process.wait()


@asynccontextmanager
async def serve(*command: str, **environment: str) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        *(command or COMMAND),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=8 * 1024 * 1024,
        env={**os.environ, **environment},
    )
    try:
        yield Server(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# ------------------------------------------------------------------ clients


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
async def test_the_official_client_lists_and_calls_the_tools(node: BoardNode, mode: str, version: str) -> None:
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=dict(os.environ))
    async with asyncio.timeout(WAIT_S), Client(parameters, mode=mode) as client:
        assert client.protocol_version == version
        tools = [tool.name for tool in (await client.list_tools()).tools]
        posted = await client.call_tool("blackboard_post", {"text": "FINDING: stdio works"})
        found = await client.call_tool("blackboard_search", {"query": "stdio"})
        feed = await client.call_tool("blackboard_feed", {"unread_only": True})
    assert tools == ["blackboard_post", "blackboard_search", "blackboard_feed"]
    for page in (found, feed):
        assert [post["id"] for post in page.structured_content["posts"]] == [posted.structured_content["id"]]


async def test_the_environment_names_author_and_reader(node: BoardNode) -> None:
    async with serve(AGENTMESH_AUTHOR="ada", AGENTMESH_READER="ada-of-shop") as server:
        await server.initialize()
        await server.call("tools/call", {"name": "blackboard_post", "arguments": {"text": "hi"}})
        await server.feed(unread_only=True)
    assert node.posts[0]["author"] == "ada"
    assert list(node.read_by) == ["ada-of-shop"]


async def test_readers_differ_by_directory(node: BoardNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "one"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        with monkeypatch.context() as there:
            there.chdir(folder)
            async with serve() as server:
                await server.initialize()
                await server.feed(unread_only=True)
    assert len(node.read_by) == 2


async def test_answers_come_though_the_input_has_ended(node: BoardNode) -> None:
    async with serve(sys.executable, "-c", UNHURRIED, *COMMAND[3:]) as server:
        server.request("initialize", INITIALIZE)
        server.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        server.request("tools/call", {"name": "blackboard_post", "arguments": {"text": "from a pipe"}})
        assert server.process.stdin is not None
        server.process.stdin.close()
        answers = [await server.answer(), await server.answer()]
        assert [answer["id"] for answer in answers] == [1, 2]
        assert await server.ended(WAIT_S) == 0
    assert [post["text"] for post in node.posts] == ["from a pipe"]


# ------------------------------------------------------------------ nothing running


async def test_the_handshake_does_not_wait_for_a_node_that_cannot_start() -> None:
    home = Path(os.environ["AGENTMESH_HOME"])
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where the home should be")
    async with serve() as server:
        assert "blackboard" in (await server.initialize())["instructions"]
        assert len((await server.call("tools/list", {}))["result"]["tools"]) == 3
        result = (await server.feed())["result"]
    assert result["isError"] is True
    assert "No node could be started" in result["content"][0]["text"]


async def test_the_node_may_come_back_between_two_calls(node: BoardNode) -> None:
    async with serve() as server:
        await server.initialize()
        assert (await server.feed())["result"]["isError"] is False
        await node.__aexit__()
        await node.__aenter__()
        assert (await server.feed())["result"]["isError"] is False


# ------------------------------------------------------------------ endings


@pytest.mark.parametrize("when", ["idle", "waiting"])
async def test_it_ends_soon_when_the_client_closes(node: BoardNode, when: str) -> None:
    async with serve() as server:
        await server.initialize()
        if when == "waiting":
            server.request("tools/call", {"name": "blackboard_feed", "arguments": {"wait_seconds": 55}})
            async with asyncio.timeout(WAIT_S):
                while node.waiting == 0:
                    await asyncio.sleep(0.01)
        assert psutil.Process(server.process.pid).children(recursive=True) == []
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert await server.ended(END_S) == 0
    async with asyncio.timeout(WAIT_S):
        while node.waiting:
            await asyncio.sleep(0.01)


def test_an_end_waits_for_less_than_two_seconds() -> None:
    """MCP clients kill what is still there two seconds after they closed its input; the rest is the machine's own time."""
    assert mcp_limits.EOF_GRACE_S + 2 * mcp_limits.FLUSH_GRACE_S < 1.5


@asynccontextmanager
async def serve_into_a_pipe() -> AsyncIterator[tuple[Server, int]]:
    """The process and the end of its stdout, which is the test's to read or to close."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(*COMMAND, stdin=asyncio.subprocess.PIPE, stdout=writing)
    os.close(writing)
    try:
        yield Server(process), reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_ends_when_nobody_reads_what_it_says(node: BoardNode) -> None:
    for number in range(200):
        await node.add(f"{number} " + "x" * 4000)
    async with serve_into_a_pipe() as (server, reading):
        server.request("initialize", INITIALIZE)
        server.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        for _ in range(5):  # answers of 1.6 MB: more than any pipe holds
            server.request("tools/call", {"name": "blackboard_feed", "arguments": {"limit": 200}})
        async with asyncio.timeout(WAIT_S):
            while len([target for _, target in node.requests if "/feed" in target]) < 5:
                await asyncio.sleep(0.01)
        assert server.process.stdin is not None
        server.process.stdin.close()
        await server.ended(END_S)  # under two seconds when it has the machine to itself
        os.close(reading)


async def test_it_ends_when_its_output_is_closed_though_its_input_is_open(node: BoardNode) -> None:
    async with serve_into_a_pipe() as (server, reading):
        os.close(reading)
        server.request("initialize", INITIALIZE)
        assert await server.ended(WAIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_on_a_signal_though_its_input_is_open(node: BoardNode, number: signal.Signals) -> None:
    async with serve() as server:
        await server.initialize()
        server.process.send_signal(number)
        await server.ended(END_S)


async def test_a_cancelled_call_leaves_the_nodes_long_poll(node: BoardNode) -> None:
    async with serve() as server:
        await server.initialize()
        call = server.request("tools/call", {"name": "blackboard_feed", "arguments": {"wait_seconds": 55}})
        async with asyncio.timeout(WAIT_S):
            while node.waiting == 0:
                await asyncio.sleep(0.01)
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": call}}
            server.write(json.dumps(cancel).encode() + b"\n")
            while node.waiting:
                await asyncio.sleep(0.01)


# ------------------------------------------------------------------ the wire


NO_MESSAGES = (
    (b"this is not json", -32700),
    (b'{"jsonrpc": "2.0", "id": 1, "method": ', -32700),
    (b"\xff\xfe", -32700),
    (b"[1, 2]", -32600),
    (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
    (b'"x"', -32600),
    (b"x" * (mcp_limits.MAX_LINE_BYTES + 10), -32600),
    (b"[" * 100_000, -32700),
)


async def test_a_line_that_is_no_message_is_answered_and_the_next_one_served(node: BoardNode) -> None:
    async with serve() as server:
        await server.initialize()
        for line, code in NO_MESSAGES:
            server.write(line + b"\n")
            answer = await server.answer()
            assert (line[:40], answer["error"]["code"]) == (line[:40], code)
            assert answer["id"] is None
            assert (await server.call("ping", {}))["result"] == {}


WRONG_CALLS: tuple[Any, ...] = (
    {},
    {"name": 5},
    {"name": "blackboard_feed", "arguments": []},
    {"name": "blackboard_feed", "arguments": "limit=5"},
    {"name": "blackboard_feed", "arguments": {}, "_meta": 3},
    {"arguments": {"text": "x"}},
    {"name": ""},
    {"name": "x" * 100_000},
)


async def test_malformed_calls_are_invalid_params_and_the_next_one_is_served(node: BoardNode) -> None:
    async with serve() as server:
        await server.initialize()
        for params in WRONG_CALLS:
            answer = await server.call("tools/call", params)
            assert answer["error"]["code"] == -32602
            assert len(json.dumps(answer)) < 1_000
        assert (await server.call("no/such/method", {}))["error"]["code"] == -32601
        assert (await server.feed())["result"]["isError"] is False
    assert node.posts == []


async def test_empty_lines_and_windows_line_ends_are_fine(node: BoardNode) -> None:
    async with serve() as server:
        await server.initialize()
        server.write(b'\n\r\n{"jsonrpc": "2.0", "id": "a", "method": "ping"}\r\n')
        assert (await server.answer())["id"] == "a"


async def test_stray_prints_do_not_reach_the_wire(node: BoardNode, tmp_path: Path) -> None:
    module = tmp_path / "noisy" / "sitecustomize.py"
    module.parent.mkdir()
    module.write_text(
        "import atexit, os, subprocess, threading, time\n"
        "def noise():\n"
        "    while True:\n"
        "        print('noise'); os.write(1, b'raw noise\\n'); time.sleep(0.005)\n"
        "def wait():\n"
        "    while os.path.sameopenfile(1, 2) is False:\n"
        "        time.sleep(0.001)\n"
        "    noise()\n"
        "threading.Thread(target=wait, daemon=True).start()\n"
    )
    path = os.pathsep.join([str(module.parent), os.environ.get("PYTHONPATH", "")])
    async with serve(PYTHONPATH=path) as server:
        await server.initialize()
        for _ in range(20):
            assert (await server.feed())["result"]["isError"] is False
        assert server.process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            await server.process.stderr.readuntil(b"noise\n")
