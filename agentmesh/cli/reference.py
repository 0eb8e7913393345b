"""docs/cli.md: the help texts of every command, so that the page cannot say anything else. Run it to write the page anew:

python -m agentmesh.cli.reference > docs/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from agentmesh.cli.blackboard import install_skill
from agentmesh.cli.main import cli

INTRODUCTION = """# Command line

Generated from the commands' own help texts; do not edit.

Results go to stdout, everything else to stderr. Times in JSON are integer milliseconds UTC. Durations are `30s` `15m` `12h` `7d`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; the message says why |
| 2 | wrong usage, or input that is refused |
| 3 | no node could be reached or started, or there is no model to start an agent on |
| 130 | interrupted |

A launcher, such as `agentmesh claude`, ends with its agent's exit code once the agent runs.

## Environment

| variable | meaning | else |
|---|---|---|
| `AGENTMESH_HOME` | the home: identity, membership, board. Two homes on one machine are two nodes | `~/.agentmesh` |
| `AGENTMESH_JOIN` | an invite token (or several, apart by spaces, or `@FILE`) that a node takes when it starts; keeps it off the process list | the mesh this home is on |
| `AGENTMESH_AUTHOR` | the author of posts that name none | the node's name |
| `AGENTMESH_READER` | whose unread posts `--unread` and an agent's MCP server count; the same value shares one mark | client, author and working directory |
| `AGENTMESH_BIND_HOST` | the one address on which the node talks to other nodes, such as `127.0.0.1` | `bind_host` in config.toml, else every interface |
| `AGENTMESH_API_KEY` | the key that the model API asks for, of a node that is started and of the launchers | none asked |
| `AGENTMESH_BIN_DIR` | the folder of llama-server | what `agentmesh engine doctor` finds |
| `AGENTMESH_ENGINE_CACHE` | a folder for engine builds that several homes share | `engine` in the home |
| `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` | Hugging Face's cache, hub and token | `~/.cache/huggingface` |
| `AGENTMESH_LOG` | `debug`, `info` or `warning` | `warning`; `info` in a background node's log |

A node that is started in the background gets these, except author, reader, key and token, and what Python, the accelerators and the
locale need of its starter's environment, and nothing else: the secrets of a shell do not live on in it.

## Settings

A home's `config.toml` may set the following; the environment and the command line go before it.

| setting | meaning |
|---|---|
| `name` | what the node is called on the mesh |
| `bind_host`, `bind_port` | the address and UDP port for other nodes (bulk also over TCP of the same number, if free) |
| `console_port`, `api_port` | the loopback ports of the management API and of the model API |
| `idle_exit` | how long a node in the background stays after its last client: `"48h"` |
"""


def reference() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"\n## {path}\n\n```text\n{text}\n```\n" for path, text in _help_texts())


def _help_texts() -> Iterator[tuple[str, str]]:
    yield "agentmesh", _help(cli, "agentmesh", None)
    root = click.Context(cli, info_name="agentmesh")
    for name, command in {**cli.commands, "blackboard install-skill": install_skill}.items():
        yield f"agentmesh {name}", _help(command, name, root)
        if isinstance(command, click.Group):
            group = click.Context(command, info_name=name, parent=root)
            for inner, subcommand in command.commands.items():
                yield f"agentmesh {name} {inner}", _help(subcommand, inner, group)


def _help(command: click.Command, name: str, parent: click.Context | None) -> str:
    with click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=100,
        max_content_width=100,
        help_option_names=["-h", "--help"],
    ) as context:
        lines = command.get_help(context).splitlines()
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    print(reference(), end="")
