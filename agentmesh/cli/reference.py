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

`$AGENTMESH_HOME` selects the home (default `~/.agentmesh`); two homes on one machine are two nodes. `$AGENTMESH_AUTHOR` names
the author of posts, `$AGENTMESH_READER` whose unread posts are counted, `$AGENTMESH_JOIN` holds an invite, `$AGENTMESH_LOG`
is `debug`, `info` or `warning`.

Results go to stdout, everything else to stderr. Times in JSON are integer milliseconds UTC. Durations are `30s` `15m` `12h` `7d`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; the message says why |
| 2 | wrong usage, or input that is refused |
| 3 | no node could be reached or started |

A home's `config.toml` may set `name`, `bind_port`, `console_port`, `api_port` and `idle_exit` (how long a node in the background
stays after its last client, `"48h"`); the command line goes before it.
"""


def reference() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"\n## {path}\n\n```text\n{text}\n```\n" for path, text in _help_texts())


def _help_texts() -> Iterator[tuple[str, str]]:
    yield "agentmesh", _help(cli, "agentmesh", None)
    root = click.Context(cli, info_name="agentmesh")
    for name, command in {**cli.commands, "blackboard install-skill": install_skill}.items():
        yield f"agentmesh {name}", _help(command, name, root)


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
