"""The `agentmesh` command: its options, its subcommands, and how every failure becomes one sentence and an exit code.

Imports nothing heavy: the node's own half is loaded only when this process becomes a node.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

import agentmesh
from agentmesh.cli.blackboard import blackboard, install_skill
from agentmesh.cli.engine import engine, gpus
from agentmesh.cli.launch import launch_commands
from agentmesh.cli.mesh import mesh
from agentmesh.cli.models import download, models
from agentmesh.cli.moe import moe
from agentmesh.cli.node import invite, leave, revoke, run_node, status, stop
from agentmesh.cli.node_options import SERVING_OPTIONS, node_options
from agentmesh.cli.output import fail
from agentmesh.cli.runtime import drop, load, unload
from agentmesh.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, AgentMeshError
from agentmesh.core.log import level_from_environment, redact, setup_logging

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_OPTION_NAMES: Final = {"models": "model", "ggufs": "gguf"}  # where the parameter has another name

EXAMPLES = """\b
Examples:
  agentmesh blackboard "STATUS: migrating the billing tests"   post, and start a node if none runs
  agentmesh blackboard                                         read what others posted
  agentmesh blackboard --search "flaky login test"             search the last 48 hours
  agentmesh blackboard --mcp                                   serve the board to an agent over MCP
  agentmesh --client                                           run a node here; prints an invite
  agentmesh --client --join amesh1.…                           join the mesh of an invite
  agentmesh invite --expires 1d                                make another invite
  agentmesh status                                             what this node is and whom it sees
  agentmesh --model qwen2.5-3b                                 serve a model to the whole mesh
  agentmesh --model qwen3-32b --split                          share a model that is too big for one machine
  agentmesh claude                                             start an agent on the mesh's models
"""


class _Root(click.Group):
    """`blackboard install-skill` is a command of its own; any other word after `blackboard` is a text to post.

    Its help shows the commands by what they are for.
    """

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(command.name or "") for _, commands in _SECTIONS for command in commands)
        for title, commands in _SECTIONS:
            with formatter.section(title):
                rows = [((command.name or "").ljust(width), command.get_short_help_str(80)) for command in commands]
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:2] == ["blackboard", "install-skill"]:
            return "blackboard install-skill", install_skill, args[2:]
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Root,
    invoke_without_command=True,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "terminal_width": 100},
)
@node_options
@click.option("-v", "--verbose", count=True, help="Log more: -v information, -vv everything. Also $AGENTMESH_LOG.")
@click.version_option(agentmesh.__version__, prog_name="agentmesh", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, verbose: int, **options: Any) -> None:
    """A shared blackboard, and shared models, for agents on one encrypted peer-to-peer mesh.

    Commands that need a node find the one of this home ($AGENTMESH_HOME, else ~/.agentmesh) or start one in the background.
    """
    if verbose:
        os.environ["AGENTMESH_LOG"] = "info" if verbose == 1 else "debug"
    level = level_from_environment()
    if ctx.invoked_subcommand is not None:
        setup_logging(level)
        given = [name for name, value in options.items() if value not in (None, False, ())]
        if given:
            option = _OPTION_NAMES.get(given[0], given[0].replace("_", "-"))
            raise click.UsageError(
                f"--{option} belongs to 'agentmesh --client' or 'agentmesh --model', not to a command."
            )
    elif options["client"] and (served := [name for name in SERVING_OPTIONS if options[name] not in (None, (), False)]):
        option = _OPTION_NAMES.get(served[0], served[0].replace("_", "-"))
        raise click.UsageError(f"A --client serves no models: leave out --client, or --{option}.")
    elif options["split"] is not None and not (options["models"] or options["ggufs"]):
        raise click.UsageError("--split needs --model or --gguf; to lend memory only, use --rpc-peers.")
    elif options["client"] or options["background"] or options["models"] or options["ggufs"] or options["rpc_peers"]:
        run_node(options)
    elif any(value not in (None, False, ()) for value in options.values()):
        raise click.UsageError("These options need --client, --model or --rpc-peers.")
    else:
        click.echo(ctx.get_help())


_SECTIONS: Final[tuple[tuple[str, tuple[click.Command, ...]], ...]] = (
    ("Blackboard", (blackboard,)),
    ("Agents on the mesh's models", launch_commands),
    ("Models", (models, download, load, unload, drop, moe, engine, gpus)),
    ("Node and mesh", (status, invite, revoke, leave, stop, mesh)),
)
for _, _commands in _SECTIONS:
    for command in _commands:
        cli.add_command(command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage or refused input, 3 no node."""
    _prepare_streams()
    try:
        result: object = cli.main(arguments, prog_name="agentmesh", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command: its message is the whole help
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        fail(_usage_sentence(error))
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except AgentMeshError as error:
        logging.getLogger(__name__).debug("failed", exc_info=error)
        fail(redact(error.message))
        return error.exit_code
    except (BrokenPipeError, SystemExit):  # whoever read our output has seen enough; click makes an exit of it
        _discard_output()
        return EXIT_DONE
    except OSError as error:
        # Other files' errors are translated where they occur; what comes here has no file's name: it is our own output.
        if error.filename is not None:
            return _defect(error)
        _discard_output()
        fail(f"The output could not be written: {error.strerror}.")
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the root of the process
        return _defect(error)
    return result if isinstance(result, int) else EXIT_DONE


def _defect(error: Exception) -> int:
    logging.getLogger(__name__).debug("failed", exc_info=error)
    fail(redact(f"this is a defect in agentmesh: {type(error).__name__}: {error}. AGENTMESH_LOG=debug shows where."))
    return EXIT_FAILED


def _discard_output() -> None:
    """Nothing more may be written, not even by the interpreter's own flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _prepare_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed: else the next file or socket opened gets its number, and what
    is printed goes there. A character that the terminal's encoding lacks becomes `?`."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # as the interpreter leaves it when the descriptor was closed at its start
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _usage_sentence(error: click.ClickException) -> str:
    message = error.format_message().strip().replace("\n", " ")
    message = re.sub(r" ?\((Did you mean [^?]*\?)\)$", r" \1", message).replace(
        "Did you mean one of: ", "Did you mean one of "
    )
    message = message if message.endswith((".", "?", "!")) else f"{message}."
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} Try: {context.command_path} --help" if context is not None else message


def main() -> None:
    """The console script."""
    sys.exit(run())
