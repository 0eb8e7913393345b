"""Many agents on one machine: ten `blackboard --mcp` processes post to one real node at once, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from typing import Any

import pytest

from tests.fakes.node_process import NodeHome, Nodes

AGENTMESH = (sys.executable, "-m", "agentmesh")
CLIENTS = 10
POSTS_EACH = 100
WAIT_S = 150.0  # for any one answer, on a machine with ten processes starting at once
POLICY = ("--policy", "posts_per_minute=200000")  # the other quotas rise in proportion

pytestmark = pytest.mark.timeout(900)


class Agent:
    """One `blackboard --mcp` process, spoken to over its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self._calls = 0

    @classmethod
    async def start(cls, home: NodeHome, name: str) -> Agent:
        process = await asyncio.create_subprocess_exec(
            *AGENTMESH, "blackboard", "--mcp",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=16 * 1024 * 1024,
            env={**home.environment, "AGENTMESH_AUTHOR": name},
        )  # fmt: skip
        agent = cls(process)
        client = {"name": name, "version": "1"}
        await agent.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client})
        agent._in.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        return agent

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._calls += 1
        message = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}
        self._in.write(json.dumps(message).encode() + b"\n")
        async with asyncio.timeout(WAIT_S):
            answer = json.loads(await self._out.readline())
        assert answer["id"] == self._calls
        return answer["result"]

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.request("tools/call", {"name": tool, "arguments": arguments})
        assert result["isError"] is False, result["content"]
        return result["structuredContent"]

    async def close(self) -> None:
        self._in.close()
        async with asyncio.timeout(WAIT_S):
            assert await self._process.wait() == 0


async def post_all(agent: Agent, name: str) -> list[str]:
    """The ids of this agent's posts, as the node gave them."""
    texts = [f"FINDING: {name} says number {number}" for number in range(POSTS_EACH)]
    return [(await agent.call("blackboard_post", text=text))["id"] for text in texts]


async def everything(agent: Agent) -> list[dict[str, Any]]:
    posts: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = await agent.call("blackboard_feed", limit=200, cursor=cursor)
        posts += page["posts"]
        cursor = page["next_cursor"]
        if cursor is None:
            return posts


async def test_ten_agents_posting_at_once_lose_nothing_and_double_nothing(nodes: Nodes) -> None:
    names = [f"agent-{number}" for number in range(CLIENTS)]
    home = await asyncio.to_thread(nodes.start, *POLICY)
    agents = await asyncio.gather(*(Agent.start(home, name) for name in names))
    ids = await asyncio.gather(*(post_all(agent, name) for agent, name in zip(agents, names, strict=True)))
    posts = await everything(agents[0])
    await asyncio.gather(*(agent.close() for agent in agents))
    told = [post_id for of_one in ids for post_id in of_one]
    assert len(set(told)) == CLIENTS * POSTS_EACH
    assert Counter(post["id"] for post in posts) == Counter(told)
    assert Counter(post["author"] for post in posts) == dict.fromkeys(names, POSTS_EACH)
    assert len({post["text"] for post in posts}) == CLIENTS * POSTS_EACH
    assert all(post["verified"] for post in posts)


async def test_posts_while_the_node_stops_and_another_starts_are_made_once(nodes: Nodes) -> None:
    """The first call starts a node in the background; it is told to stop while the agent goes on posting."""
    home = nodes.home()
    await asyncio.to_thread(home.start, *POLICY)  # a mesh without quotas: a stop may take long, and the agent posts on
    await asyncio.to_thread(home.stop)
    agent = await Agent.start(home, "agent")
    await agent.call("blackboard_post", text="before")
    first_pid = home.node_json()["pid"]
    stopping = asyncio.ensure_future(asyncio.to_thread(home.cli, "stop"))
    posted = 0
    while posted < 3 or not stopping.done():
        await agent.call("blackboard_post", text=f"while it stops {posted}", **{"from": f"agent {posted // 5}"})
        posted += 1
    assert (await stopping).code == 0
    await agent.call("blackboard_post", text="after", **{"from": "last"})
    texts = Counter(post["text"] for post in await everything(agent))
    await agent.close()
    assert home.node_json()["pid"] != first_pid
    assert texts == Counter(["before", *(f"while it stops {number}" for number in range(posted)), "after"])


async def test_posts_while_the_node_is_killed_are_made_once(nodes: Nodes) -> None:
    """Every post that was acknowledged is there, once, whenever the node died: the key of a repeated post is on disk."""
    home = nodes.home()
    agent = await Agent.start(home, "agent")
    await agent.call("blackboard_post", text="post 0")
    posted = 1
    for _ in range(3):
        posting = asyncio.ensure_future(agent.call("blackboard_post", text=f"post {posted}"))
        await asyncio.sleep(0.001 * posted)  # in the middle of the call, at a different point each time
        os.kill(home.node_json()["pid"], signal.SIGKILL)
        await posting
        posted += 1
    texts = Counter(post["text"] for post in await everything(agent))
    await agent.close()
    assert texts == Counter(f"post {number}" for number in range(posted))


async def test_ten_agents_that_start_together_share_one_node(nodes: Nodes) -> None:
    home = nodes.home()
    agents = await asyncio.gather(*(Agent.start(home, f"agent-{number}") for number in range(CLIENTS)))
    await asyncio.gather(*(agent.call("blackboard_post", text=f"hi {n}") for n, agent in enumerate(agents)))
    seen = [len(await everything(agent)) for agent in agents]
    await asyncio.gather(*(agent.close() for agent in agents))
    assert seen == [CLIENTS] * CLIENTS
