"""What is printed when a model is ready."""

from __future__ import annotations

from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.hints import launch_hints


def test_the_hints_name_each_agent_and_the_plain_environment() -> None:
    hints = launch_hints(9337, "Qwen2.5-7B")
    for agent in AGENTS:
        assert f"agentmesh {agent.name} --model Qwen2.5-7B\n" in hints
    assert "OPENAI_BASE_URL=http://localhost:9337/v1 " in hints
    assert "ANTHROPIC_BASE_URL=http://localhost:9337 " in hints


def test_of_an_api_that_asks_for_a_key_the_variable_is_named() -> None:
    hints = launch_hints(9337, "m", asks_key=True)
    assert "export AGENTMESH_API_KEY first" in hints
    assert 'OPENAI_API_KEY="$AGENTMESH_API_KEY" ' in hints
    assert "=local" not in hints


def test_a_name_that_a_shell_would_read_is_quoted() -> None:
    assert "--model 'a b; rm'" in launch_hints(1, "a b; rm")
    assert "--model 'it'\"'\"'s'" in launch_hints(1, "it's")
