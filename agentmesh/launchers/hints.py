"""What a user is told when a model is ready: the command for each agent, and the environment for everything else."""

from __future__ import annotations

import shlex

from agentmesh.launchers.agents import AGENTS


def launch_hints(api_port: int, model: str) -> str:
    """Lines of text, without a newline at the end."""
    base = f"http://localhost:{api_port}"
    name = shlex.quote(model)
    commands = [f"  agentmesh {agent.name} --model {name}" for agent in AGENTS]
    environment = [
        f"  OPENAI_BASE_URL={base}/v1 OPENAI_API_KEY=local OPENAI_MODEL={name}",
        f"  ANTHROPIC_BASE_URL={base} ANTHROPIC_AUTH_TOKEN=local ANTHROPIC_MODEL={name}",
    ]
    return "\n".join([f"{model} is ready. Agents on it:", *commands, "Anything else:", *environment])
