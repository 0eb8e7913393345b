"""Official programs against `agentmesh blackboard --mcp`: the conformance suite over HTTP, the inspector over stdio.

The suite's scenarios fall in two: those that any server can pass, and those that call tools, prompts or resources of the
suite's own example server (`test_simple_text`, `test://static-text` …), which a server for real use does not have. The first
must pass without a failed check; of the second the test makes sure that nothing but the missing fixture is why they fail.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mcp_tools import NpmTools, npm_tools, with_token
from tests.fakes.node_process import NodeHome, Nodes

pytestmark = [pytest.mark.node_js, pytest.mark.timeout(1200)]  # the first run installs the programs

WAIT_S = 90.0

GENERIC = {
    "2025-11-25": {
        "server-initialize",
        "server-session-lifecycle",
        "logging-set-level",
        "ping",
        "completion-complete",
        "tools-list",
        "resources-list",
        "resources-subscribe",
        "resources-unsubscribe",
        "prompts-list",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
    },
    "2026-07-28": {
        "completion-complete",
        "tools-list",
        "resources-list",
        "sep-2164-resource-not-found",
        "prompts-list",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
        "caching",
        "http-header-validation",
        "input-required-result-unsupported-methods",
    },
}

# Generic but for some checks, which call a diagnostic tool; every other check must pass.
PARTLY_GENERIC = {
    "2025-11-25": {},
    "2026-07-28": {
        "server-stateless": {
            "sep-2575-server-rejects-undeclared-capability": "calls test_missing_capability",
            "sep-2575-missing-capability-http-400": "calls test_missing_capability",
            "sep-2575-http-server-no-independent-requests-on-stream": "calls test_streaming_elicitation",
            "sep-2575-server-no-log-without-loglevel": "calls test_logging_tool",
        },
    },
}

_TOOL = "calls a tool of the example server"
_RESOURCE = "reads a resource of the example server"
_PROMPT = "gets a prompt of the example server"
_ASKS = "needs a tool that asks the client for input; none of ours does"
_BOTH = {
    "tools-call-simple-text": _TOOL,
    "tools-call-image": _TOOL,
    "tools-call-audio": _TOOL,
    "tools-call-embedded-resource": _TOOL,
    "tools-call-mixed-content": _TOOL,
    "tools-call-error": _TOOL,
    "tools-call-with-progress": _TOOL,
    "json-schema-2020-12": "lists a tool of the example server",
    "resources-read-text": _RESOURCE,
    "resources-read-binary": _RESOURCE,
    "resources-templates-read": _RESOURCE,
    "prompts-get-simple": _PROMPT,
    "prompts-get-with-args": _PROMPT,
    "prompts-get-embedded-resource": _PROMPT,
    "prompts-get-with-image": _PROMPT,
}
NEEDS_FIXTURE = {
    "2025-11-25": {
        **_BOTH,
        "tools-call-with-logging": _TOOL,
        "tools-call-sampling": _ASKS,
        "tools-call-elicitation": _ASKS,
        "elicitation-sep1034-defaults": _ASKS,
        "elicitation-sep1330-enums": _ASKS,
        "server-sse-polling": "calls test_reconnection, which closes its own stream",
    },
    "2026-07-28": {
        **_BOTH,
        "http-custom-header-server-validation": "needs a tool with x-mcp-header arguments; ours have none",
        "input-required-result-basic-elicitation": _ASKS,
        "input-required-result-basic-sampling": _ASKS,
        "input-required-result-basic-list-roots": _ASKS,
        "input-required-result-request-state": _ASKS,
        "input-required-result-multiple-input-requests": _ASKS,
        "input-required-result-multi-round": _ASKS,
        "input-required-result-missing-input-response": _ASKS,
        "input-required-result-non-tool-request": _ASKS,
        "input-required-result-result-type": _ASKS,
        "input-required-result-tampered-state": _ASKS,
        "input-required-result-capability-check": _ASKS,
        "input-required-result-ignore-extra-params": _ASKS,
        "input-required-result-validate-input": _ASKS,
    },
}
# How the suite says that a fixture is missing, in our words or its own.
_MISSING = re.compile(
    r"There is no (tool|prompt|resource) '(test[_:]|json_schema)|not found\. Available tools|[Nn]ot testable|"
    r"Expected InputRequiredResult|Prerequisite failed: could not get initial InputRequiredResult"
)

Checks = list[dict[str, Any]]


@pytest.fixture(scope="session")
def tools() -> NpmTools:
    return npm_tools()


@pytest.fixture
def node() -> Iterator[NodeHome]:
    with Nodes() as nodes:
        yield nodes.start()


@pytest.fixture
async def port(node: NodeHome) -> AsyncIterator[int]:
    """Where MCP is served without asking for a token, by way of a proxy that adds it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentmesh", "blackboard", "--mcp", "--http", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=node.environment,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            line = (await process.stderr.readline()).decode()
        found = re.search(r"127\.0\.0\.1:(\d+)/mcp", line)
        assert found is not None, line
        async with with_token(int(found[1]), node.node_json()["token"]) as open_port:
            yield open_port
    finally:
        process.kill()
        await process.wait()


def results(folder: Path) -> dict[str, Checks]:
    """The checks of each scenario, from the files that the suite wrote."""
    found: dict[str, Checks] = {}
    for path in sorted(folder.glob("*/checks.json")):
        name = re.fullmatch(r"server-(.+)-\d{4}-\d\d-\d\dT.*", path.parent.name)
        assert name is not None, path.parent.name
        found[name[1]] = json.loads(path.read_text())
    return found


def failed(checks: Checks) -> dict[str, str]:
    return {check["id"]: check.get("errorMessage") or "" for check in checks if check["status"] == "FAILURE"}


def passed(checks: Checks) -> int:
    return sum(check["status"] == "SUCCESS" for check in checks)


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_the_conformance_suite_passes_over_http(
    tools: NpmTools, port: int, tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}/mcp"
    output = tmp_path / "results"
    arguments = ("--url", url, "--suite", "all", "--spec-version", version, "-o", str(output))
    _, said, errors = await tools.run("conformance", "server", *arguments)
    found = results(output)
    partly = PARTLY_GENERIC[version]
    assert set(found) == GENERIC[version] | set(partly) | set(NEEDS_FIXTURE[version]), said + errors
    for name in sorted(GENERIC[version]):
        assert failed(found[name]) == {}, name
        assert passed(found[name]) > 0, name
    for name, excepted in partly.items():
        assert set(failed(found[name])) <= set(excepted), failed(found[name])
        assert passed(found[name]) >= 20, name
    for name in NEEDS_FIXTURE[version]:
        for message in failed(found[name]).values():
            assert _MISSING.search(message), f"{name} fails for another reason: {message}"
    with capsys.disabled():
        checks = {name: passed(found[name]) for name in sorted(GENERIC[version] | set(partly))}
        print(f"\nMCP {version}: " + ", ".join(f"{name} ({count})" for name, count in checks.items()))


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_lists_and_calls_the_tools_over_stdio(
    tools: NpmTools, node: NodeHome, tmp_path: Path, era: str
) -> None:
    first = node.json("blackboard", "FINDING: seen by the inspector")

    async def inspect(*arguments: str) -> Any:
        given = ("-e", f"AGENTMESH_HOME={node.root}")
        server = ("--", sys.executable, "-m", "agentmesh", "blackboard", "--mcp")
        code, output, errors = await tools.run(
            "mcp-inspector", "--cli", *arguments, "--protocol-era", era, *given, *server,
            MCP_CATALOG_PATH=str(tmp_path / "catalog.json"),
        )  # fmt: skip
        assert code == 0, output + errors
        return json.loads(output)

    listed = await inspect("--method", "tools/list", "--strict")
    assert [tool["name"] for tool in listed["tools"]] == ["blackboard_post", "blackboard_search", "blackboard_feed"]
    call = ("--method", "tools/call", "--tool-name")
    posted = await inspect(*call, "blackboard_post", "--tool-arg", "text=TIP: from the inspector")
    found = await inspect(*call, "blackboard_search", "--tool-arg", "query=inspector", "limit=5")
    ids = {post["id"] for post in found["structuredContent"]["posts"]}
    assert ids == {first["id"], posted["structuredContent"]["id"]}
    feed = await inspect(*call, "blackboard_feed", "--tool-args-json", '{"unread_only": true}')
    assert "| FINDING: seen by the inspector" in feed["content"][0]["text"]
    resource = await inspect("--method", "resources/read", "--uri", "blackboard://feed")
    assert "TIP: from the inspector" in resource["contents"][0]["text"]
    prompts = await inspect("--method", "prompts/list")
    assert [prompt["name"] for prompt in prompts["prompts"]] == ["standup", "handoff"]
