"""The options with which `agentmesh` becomes a node: what they are called and how they are explained. node.py reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_PORT: Final = click.IntRange(0, 65535)

_RUN: Final = (
    click.option("--client", is_flag=True, help="Run a node without models in the foreground; prints an invite."),
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="NAME",
        help="Serve this model: a name of the catalog, org/repo[:QUANT], a Hugging Face URL, or a GGUF file. Repeatable.",
    ),
    click.option(
        "--gguf", "ggufs", multiple=True, metavar="FILE", help="Serve this GGUF file, which must be there. Repeatable."
    ),
)

_MESH: Final = (
    click.option(
        "--join",
        "join",
        multiple=True,
        metavar="TOKEN",
        help="Join the mesh of this invite; also @FILE or - for stdin, else $AGENTMESH_JOIN. Repeatable.",
    ),
    click.option("--name", metavar="NAME", help="What this node is called on the mesh."),
    click.option(
        "--policy",
        multiple=True,
        metavar="KEY=N",
        help="A quota of the mesh that is founded: posts_per_minute, posts_per_day, author_posts_per_minute. Repeatable.",
    ),
)

_SERVING: Final = (
    click.option(
        "--ctx-size", type=click.IntRange(min=1), metavar="TOKENS", help="Context of each request. [what fits]"
    ),
    click.option("--max-vram", metavar="GB", help="Memory that models may use here, in GB. [what is free]"),
    click.option("--device", metavar="NAME", help="Run models on this device; see agentmesh gpus. [the best one]"),
    click.option("--bin-dir", metavar="DIR", help="Folder of llama-server; else $AGENTMESH_BIN_DIR."),
    click.option("--llama-flavor", metavar="NAME", help="Which engine: cpu, cuda, rocm, vulkan, metal, or embedded."),
)

_LENDING: Final = (
    click.option(
        "--rpc-peers",
        metavar="ID,…|all",
        help="Lend this machine's memory to models that these nodes host. [nobody; with --split all]",
    ),
    click.option(
        "--weights",
        type=click.Choice(["fetch", "stream"]),
        help="What to do without a model's file when a host asks: fetch it first, or let the weights come. [fetch]",
    ),
)

_SPLITTING: Final = (
    click.option(
        "--split",
        is_flag=False,
        flag_value="any",
        type=click.Choice(["any", "layers", "experts"]),
        help="Spread the model over the mesh if no node can hold it: its layers, or (=experts) its experts.",
    ),
    click.option(
        "--tensor-split",
        metavar="N,N,…",
        help="How many parts each node of a split gets: workers in plan order, the host last. [what fits]",
    ),
    click.option("--host-node", metavar="ID", help="The node that hosts the split. [the one with most free memory]"),
    click.option("--min-peers", type=click.IntRange(0, 15), metavar="N", help="Wait for so many workers. [what fits]"),
)

_DRAFTING: Final = (
    click.option("--draft", metavar="NAME", help="A small model that drafts. [in a split: as the catalog says]"),
    click.option("--draft-max", type=click.IntRange(1, 64), metavar="N", help="Tokens to draft at a time. [8]"),
    click.option("--no-draft", is_flag=True, help="Use no draft."),
)

SERVING_OPTIONS: Final = (
    *("models", "ggufs", "ctx_size", "max_vram", "device", "bin_dir", "llama_flavor"),
    *("split", "tensor_split", "host_node", "min_peers", "draft", "draft_max", "no_draft", "rpc_peers", "weights"),
)

_PORTS: Final = (
    click.option("--port", type=_PORT, metavar="PORT", help="Port of the model API on loopback (0: any). [9337]"),
    click.option(
        "--listen-all", is_flag=True, help="Let other machines use the model API, with a key only. [this machine only]"
    ),
    click.option(
        "--api-key",
        metavar="@FILE",
        help="The key, or keys, that the model API asks for: in a file, or in $AGENTMESH_API_KEY.",
    ),
    click.option("--console", type=_PORT, metavar="PORT", help="Port of the management API on loopback. [3131]"),
    click.option(
        "--bind-port",
        type=_PORT,
        metavar="PORT",
        help="UDP port for other nodes, and TCP of the same number if free (0: any).",
    ),
    click.option("--background", is_flag=True, hidden=True),
    click.option("--ready-fd", type=int, hidden=True),
)


def split_options(command: Command) -> Command:
    """Decorates `load` with those that are about spreading one model."""
    for option in reversed((*_SPLITTING, *_DRAFTING)):
        command = option(command)
    return command


def node_options(command: Command) -> Command:
    """Decorates the root command with all of them, in this order."""
    for option in reversed((*_RUN, *_MESH, *_SERVING, *_SPLITTING, *_DRAFTING, *_LENDING, *_PORTS)):
        command = option(command)
    return command
