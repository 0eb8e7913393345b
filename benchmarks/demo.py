"""`make demo`: three real nodes on this machine, one mesh, a real MCP client; says what happens and cleans up after itself.

Everything runs in a temporary folder and on loopback. The exit code is 0 only if every step showed what it claims.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.stdio import StdioServerParameters

NAMES = ("laptop", "desktop", "server")
COMMAND = str(Path(sys.executable).parent / "agentmesh")
POST = "FINDING: [acme/shop branch:main] retries double-charge when the clock jumps; use the idempotency key"
SECRET = "A" + "KIA" + "QX7PLMZ3TUVWR5YE"  # made here, belongs to nobody


def say(text: str) -> None:
    print(text, flush=True)


class Node:
    """One node process in a home of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.home = folder / name
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AGENTMESH_")},
            "AGENTMESH_HOME": str(self.home),
            "AGENTMESH_BIND_HOST": "127.0.0.1",
            "AGENTMESH_AUTHOR": f"{name}-agent",
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self, token: str | None) -> str:
        """Run `agentmesh --client` until it prints its invite; returns the token."""
        arguments = [COMMAND, "--client", "--name", self.name, "--port", "0", "--console", "0", "--bind-port", "0"]
        environment = self.environment | ({"AGENTMESH_JOIN": token} if token else {})
        with (self.home.parent / f"{self.name}.log").open("w") as log:
            self.process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("Invite: "):
                return line.removeprefix("Invite: ").strip()
        raise SystemExit(f"{self.name} did not start:\n" + (self.home.parent / f"{self.name}.log").read_text())

    def run(self, *arguments: str) -> Any:
        """The JSON that an agentmesh command prints in this home."""
        result = subprocess.run(
            [COMMAND, *arguments, "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if result.returncode != 0:
            raise SystemExit(f"agentmesh {' '.join(arguments)} failed: {result.stderr}")
        return json.loads(result.stdout)

    def stop(self) -> int | None:
        """End it as a user would with Ctrl-C; returns its exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)


async def post_by_mcp(node: Node, text: str) -> dict[str, Any]:
    """Post through `agentmesh blackboard --mcp`, started by the official MCP client as an agent would."""
    server = StdioServerParameters(command=COMMAND, args=["blackboard", "--mcp"], env=node.environment)
    async with Client(server) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        say(f"    its MCP server offers: {', '.join(tools)}")
        result = await client.call_tool("blackboard_post", {"text": text})
        if result.is_error or result.structured_content is None:
            raise SystemExit(f"the MCP post failed: {result.content}")
        return result.structured_content


def wait_for(node: Node, query: str, seconds: float = 60) -> dict[str, Any]:
    """The first post that a search on `node` finds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if posts := node.run("blackboard", "--search", query)["posts"]:
            return posts[0]
        time.sleep(0.1)
    raise SystemExit(f"{node.name} never saw the post about '{query}'")


def show(laptop: Node, desktop: Node, server: Node) -> None:
    say("\n2. An agent on the laptop posts over MCP, and pastes a key by mistake")
    posted = asyncio.run(post_by_mcp(laptop, f"{POST} (tested with {SECRET})"))
    say(f"    posted {posted['id'][:8]}, masked before it was stored or sent: {posted['redactions']}")

    say("\n3. The others search in plain words")
    for node in (desktop, server):
        found = wait_for(node, "double charge retries")
        if SECRET in found["text"]:
            raise SystemExit("the secret got out")
        say(f"    {node.name} finds: {found['text']}")
        say(f"      by {found['author']}, signed by node {found['node_id'][:8]}, verified: {found['verified']}")

    say("\n4. The server asks, the desktop answers, the laptop reads")
    question = server.run("blackboard", "QUESTION: [acme/shop] which idempotency key format do we use?")["id"]
    wait_for(desktop, "idempotency key format")
    desktop.run("blackboard", "TIP: [acme/shop] order id plus attempt number", "--reply-to", question[:8])
    wait_for(laptop, "attempt number")
    for post in reversed(laptop.run("blackboard")["posts"]):
        say(f"    {post['author']:>14}  {post['text']}")


def main() -> None:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="agentmesh-demo-"))
    nodes = [Node(folder, name) for name in NAMES]
    laptop, desktop, server = nodes
    try:
        say("1. Three nodes on this machine, each in a home of its own")
        token = laptop.start(None)
        say(f"    laptop founded a mesh and printed an invite ({len(token)} characters)")
        for node in (desktop, server):
            node.start(token)
            say(f"    {node.name} joined with it")
        show(laptop, desktop, server)
    finally:
        codes = {node.name: node.stop() for node in nodes}
        shutil.rmtree(folder, ignore_errors=True)
    if any(codes.values()):
        raise SystemExit(f"a node did not end cleanly: {codes}")
    say(f"\nDone in {time.monotonic() - began:.0f} s: three nodes stopped, nothing left behind.")
    say("Next: `.venv/bin/agentmesh --help`")


if __name__ == "__main__":
    main()
