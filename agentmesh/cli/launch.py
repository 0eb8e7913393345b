"""`agentmesh claude|goose|pi|opencode|codex`: start a coding agent on the mesh's models.

Owns the commands' options and how they are told from the agent's; what a launch does is in agentmesh.launchers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import click

from agentmesh.cli.output import emit_json, note
from agentmesh.core.paths import Home
from agentmesh.launchers.agents import AGENTS
from agentmesh.launchers.base import Agent

_EXAMPLES: Final = {
    "claude": ('agentmesh claude -p "explain this repository"', "agentmesh claude -- --continue"),
    "goose": ("agentmesh goose run -t 'explain this repository'", "agentmesh goose session --resume"),
    "pi": ('agentmesh pi -p "explain this repository"', "agentmesh pi --continue"),
    "opencode": ('agentmesh opencode run "explain this repository"', "agentmesh opencode --continue"),
    "codex": ('agentmesh codex exec "explain this repository"', "agentmesh codex --write"),
}


class _Launcher(click.Command):
    """Takes its own options up to the first word that is not one of them; that word and all after it are the agent's.

    click's own way of passing unknown options on would look for ours behind them, and inside of groups of short ones.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, rest = self._split(args)
        remaining = super().parse_args(ctx, own)
        ctx.params["arguments"] = tuple(rest)
        return remaining

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        flags = {name: bool(getattr(option, "is_flag", False)) for option in self.params for name in option.opts}
        flags |= {"--help": True, "-h": True}
        index = 0
        while index < len(args):
            name, equals, _ = args[index].partition("=")
            if name not in flags or (equals and flags[name]):
                break
            if name == "--json" and "--print-config" not in args[:index]:
                break  # agents have a --json of their own
            index += 1 if flags[name] or equals else 2
        own, rest = list(args[:index]), list(args[index:])
        return own, rest[1:] if rest[:1] == ["--"] else rest


def _command(agent: Agent) -> click.Command:
    def launch(**options: Any) -> int:
        return _launch(agent, options)

    name = agent.name
    examples = (f"agentmesh {name}", f"agentmesh {name} --model qwen3-coder", *_EXAMPLES[name])
    write = f"Write {agent.writes}." if agent.writes else f"{agent.title} needs no file: refused."
    return _Launcher(
        name,
        callback=launch,
        params=[
            click.Option(["--model"], metavar="NAME", help="Use this model of the mesh. [the strongest with tools]"),
            click.Option(
                ["--port"],
                type=click.IntRange(1, 65535),
                metavar="PORT",
                help="Where to look for the model API when no node runs in this home. [9337]",
            ),
            click.Option(["--print-config"], is_flag=True, help="Show what would be set and run; change nothing."),
            click.Option(["--json"], is_flag=True, help="After --print-config: as JSON."),
            click.Option(["--write"], is_flag=True, help=write),
            click.Option(["--with-blackboard"], is_flag=True, help="Give the agent the shared blackboard."),
        ],
        help=_help(agent),
        short_help=f"Start {agent.title} on the mesh's models.",
        options_metavar="[OPTIONS] [--] [ARGS]...",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples),
    )


def _help(agent: Agent) -> str:
    return f"""Start {agent.title} on the mesh's models.

    Uses the node of this home, else what answers on --port, else a node that ends again with the agent. The first
    argument that is none of the options below, and everything after it, goes to {agent.title}; so does what follows --.
    Exits with {agent.title}'s exit code; with 3 when there is no model anywhere.
    """


def _launch(agent: Agent, options: dict[str, Any]) -> int:
    from agentmesh.launchers.session import Order, Session

    if options["write"] and not agent.writes:
        raise click.UsageError(f"{agent.title} gets everything through its environment: leave out --write.")
    order = Order(
        agent=agent,
        model=options["model"],
        port=options["port"],
        write=options["write"],
        with_blackboard=options["with_blackboard"],
        arguments=options["arguments"],
    )
    session = Session(order, Home.from_environment(), dict(os.environ), note)
    if not options["print_config"]:
        return session.run()
    from agentmesh.launchers.show import as_json, as_shell

    wish, launch = session.describe()
    if options["json"]:
        emit_json(as_json(agent, wish, launch))
    else:
        click.echo(as_shell(agent, wish, launch), nl=False)
        for text in launch.notes:
            note(text)
    return 0


launch_commands: Final[tuple[click.Command, ...]] = tuple(_command(agent) for agent in AGENTS)
