"""Real coding agents on a real mesh: started by `agentmesh <agent>` on a node without a model, answered by another node's engine.

The model says one sentence and stops, and makes one tool call where it is asked to post (tests/fakes/talking_gguf.py); all else
is as users have it: the agents from npm, the launchers, two nodes, llama.cpp. What the agents said is printed (`pytest -rP`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentmesh.inference.engine.engine import Engine
from tests.fakes.agents import AGENTS, AgentHome, AgentsMissing, InstalledAgents, installed_agents
from tests.fakes.node_process import NodeHome, Nodes, Result, wait_for
from tests.fakes.talking_gguf import ANSWER, Call, write_talking

pytestmark = [pytest.mark.node_js, pytest.mark.timeout(1200)]  # the first run installs the agents

MODEL = "talking"
QUESTION = "What is a mesh? Answer in one sentence."
POST = "Please tell the others."
READ = "Please read the board."
READY_S = 90.0
AGENT_TIMEOUT_S = 300.0  # 10 s alone on two cores; tests share them with others
CONTEXT_TOKENS = 131_072

ASK = {
    "claude": ("-p", QUESTION),
    "goose": ("run", "-t", QUESTION),
    "pi": ("-p", QUESTION),
    "opencode": ("run", QUESTION),
    "codex": ("exec", "--skip-git-repo-check", QUESTION),
}


def say(agent: str, words: str) -> list[str]:
    """The agent's arguments to say `words`."""
    return [words if word == QUESTION else word for word in ASK[agent]]


def tip(agent: str) -> str:
    return f"TIP: {agent} was here"


# The tool of each agent that posts: MCP's, by the name that the agent gives it; a shell for those whose models see no MCP.
CALLS = (
    Call("mcp__agentmesh__blackboard_post", {"text": tip("claude")}, POST),
    Call("agentmesh__blackboard_post", {"text": tip("goose")}, POST),
    Call("agentmesh_blackboard_post", {"text": tip("opencode")}, POST),
    Call("exec_command", {"cmd": f"agentmesh blackboard '{tip('codex')}'"}, POST),
    Call("bash", {"command": f"agentmesh blackboard '{tip('pi')}'"}, POST),
    Call("read_mcp_resource", {"server": "agentmesh", "uri": "blackboard://feed"}, READ),
)


@dataclass(frozen=True)
class Mesh:
    """`host` serves the model, `client` has none."""

    host: NodeHome
    client: NodeHome


@pytest.fixture(autouse=True)
def transcript(record_property: Callable[[str, object], None]) -> None:
    """What the test prints is shown in the summary, also when it passes (tests/conftest.py)."""
    record_property("transcript", True)


@pytest.fixture(scope="module")
def agents() -> InstalledAgents:
    try:
        return installed_agents()
    except AgentsMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def mesh(agents: InstalledAgents, real_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    del agents  # first: no nodes on a machine that cannot have agents
    model = write_talking(tmp_path_factory.mktemp("model") / f"{MODEL}.gguf", calls=CALLS)
    engine = ("--bin-dir", str(Path(real_engine.command[0]).parent), "--ctx-size", str(CONTEXT_TOKENS))
    with Nodes() as nodes:
        host = nodes.start("--name", "host", "--gguf", str(model), *engine)
        client = nodes.start("--name", "client", "--join", host.invite)
        wait_for(lambda: MODEL in ready_models(client), READY_S, "the model to be listed on the node that lacks it")
        yield Mesh(host, client)


def ready_models(node: NodeHome) -> set[str]:
    listed = httpx.get(f"http://127.0.0.1:{node.api_port}/v1/models", timeout=30).json()["data"]
    return {model["id"] for model in listed if model["ready"]}


def answered(node: NodeHome, route: str) -> float:
    """Requests for the model that this node answered by way of its own engine ("local") or of another node ("peer")."""
    text = httpx.get(f"http://127.0.0.1:{node.api_port}/metrics", timeout=30).text
    wanted = {"model": MODEL, "route": route, "status": "2xx"}
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "agentmesh_requests_total" and sample.labels == wanted
    )


def run_agent(
    agents: InstalledAgents, agent: str, node: NodeHome, launcher: Sequence[str], arguments: Sequence[str]
) -> Result:
    """What `agentmesh <agent>` gives in a fresh home of a user whose node is `node`. The transcript is printed."""
    own = {name: value for name, value in node.environment.items() if name.startswith("AGENTMESH_")}
    command = [sys.executable, "-m", "agentmesh", agent, *launcher, *arguments]
    began = time.monotonic()
    with AgentHome(agents.path_of(agent), own) as home:
        result = home.run(command, timeout_s=AGENT_TIMEOUT_S)
    seconds = time.monotonic() - began
    print(
        f"$ {' '.join(['agentmesh', *command[3:]])}\n{result.out}\n--- stderr\n{result.err}\n--- exit {result.code}, {seconds:.1f} s"
    )
    return result


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_is_answered_by_the_model_of_another_node(agents: InstalledAgents, mesh: Mesh, agent: str) -> None:
    before = answered(mesh.host, "local"), answered(mesh.client, "peer")
    result = run_agent(agents, agent, mesh.client, (), ASK[agent])
    assert result.code == 0, result
    assert ANSWER in result.out
    assert answered(mesh.host, "local") > before[0]
    assert answered(mesh.client, "peer") > before[1]


@pytest.mark.parametrize("agent", ["claude", "goose", "opencode"])
def test_an_agent_posts_to_the_blackboard_with_its_mcp_tool(agents: InstalledAgents, mesh: Mesh, agent: str) -> None:
    result = run_agent(agents, agent, mesh.client, ("--with-blackboard",), say(agent, POST))
    assert result.code == 0, result
    assert ANSWER in result.out  # what the model says once it has the tool's result
    assert tip(agent) in texts(mesh.client)
    wait_for(lambda: tip(agent) in texts(mesh.host), READY_S, "the post on the other node")


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        ("pi", ()),
        ("codex", ("--sandbox", "danger-full-access")),  # its sandbox lets no command reach the node
    ],
)
def test_an_agent_whose_model_sees_no_mcp_posts_with_the_command(
    agents: InstalledAgents, mesh: Mesh, agent: str, more: tuple[str, ...]
) -> None:
    first, *rest = say(agent, POST)
    result = run_agent(agents, agent, mesh.client, ("--with-blackboard",), (first, *more, *rest))
    assert result.code == 0, result
    assert ANSWER in result.out
    assert tip(agent) in texts(mesh.client)


def test_codex_reads_the_board_through_mcp(agents: InstalledAgents, mesh: Mesh) -> None:
    finding = "FINDING: codex can read this"
    mesh.host.cli("blackboard", finding)
    wait_for(lambda: finding in texts(mesh.client), READY_S, "the post on the agent's node")
    first, *rest = say("codex", READ)
    result = run_agent(agents, "codex", mesh.client, ("--with-blackboard",), (first, "--json", *rest))
    assert result.code == 0, result
    items = [json.loads(line).get("item", {}) for line in result.out.splitlines()]
    read = [item for item in items if item.get("type") == "mcp_tool_call" and item["status"] == "completed"]
    assert len(read) == 1
    assert finding in json.dumps(read[0]["result"])


def test_an_agents_failure_is_the_launchers(agents: InstalledAgents, mesh: Mesh) -> None:
    result = run_agent(agents, "codex", mesh.client, (), ("exec", "--no-such-option"))
    assert result.code == 2
    assert "--no-such-option" in result.err


def texts(node: NodeHome) -> list[str]:
    posts = json.loads(node.cli("blackboard", "--json").out)["posts"]
    return [post["text"] for post in posts]
