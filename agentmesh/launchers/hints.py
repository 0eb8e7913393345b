"""What a user is told when a model is ready: the command for each agent, and the environment for everything else."""

from __future__ import annotations

import shlex

from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.launchers.agents import AGENTS


def launch_hints(api_port: int, model: str, *, asks_key: bool = False) -> str:
    """Lines of text, without a newline at the end. `asks_key`: the API takes requests with a key only."""
    base = f"http://localhost:{api_port}"
    name = shlex.quote(model)
    key = f'"${KEY_VARIABLE}"' if asks_key else "local"
    commands = [f"  agentmesh {agent.name} --model {name}" for agent in AGENTS]
    environment = [
        f"  OPENAI_BASE_URL={base}/v1 OPENAI_API_KEY={key} OPENAI_MODEL={name}",
        f"  ANTHROPIC_BASE_URL={base} ANTHROPIC_AUTH_TOKEN={key} ANTHROPIC_MODEL={name}",
    ]
    needed = [f"This node asks for an API key: export {KEY_VARIABLE} first."] if asks_key else []
    return "\n".join([f"{model} is ready. Agents on it:", *needed, *commands, "Anything else:", *environment])
