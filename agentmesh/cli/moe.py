"""`agentmesh moe …`: mixtures of experts in parts: which experts matter, which node would hold which, and the files. Needs no node.

Owns the words; the steps are in moe_work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from agentmesh.cli.engine import bin_dir_option
from agentmesh.cli.moe_work import ModelWork
from agentmesh.cli.output import emit_json, note, safe_line
from agentmesh.core.errors import InvalidInput

MAX_NODES: Final = 64
MAX_EXPERTS: Final = 1024
SHOWN: Final = 8  # experts a layer in the table for people

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
imatrix_option = click.option(
    "--imatrix",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Rank by the counts of this importance matrix (llama-imatrix, GGUF form).",
)
nodes_option = click.option(
    "--nodes", type=click.IntRange(1, MAX_NODES), default=2, show_default=True, metavar="N", help="For how many nodes."
)
minimum_option = click.option(
    "--min-experts",
    "minimum",
    type=click.IntRange(1, MAX_EXPERTS),
    metavar="N",
    help="Experts a layer that every node holds. [the catalog's number, else half]",
)
room_option = click.option("--max-gb", metavar="GB", help="Memory for weights on each node, in GB. [no limit]")


@click.group("moe")
def moe() -> None:
    """Models of many experts, in parts that nodes run independently.

    Each part is a model of its own: the core and the experts that are used most, and some of the others. Nothing flows between
    nodes; a conversation stays on one. MODEL is a path, or a model's name as
    for 'agentmesh download': of one that is not installed, only the bytes that a part holds are fetched.
    Nodes that share such a model make their parts by themselves.

    \b
    Examples:
      agentmesh moe rank Qwen3-30B-A3B               measure once, where there is most memory
      agentmesh moe plan Qwen3-30B-A3B --nodes 3     what each of three nodes would hold
      agentmesh moe split ./model.gguf --node 1      write the first node's part
    """


@moe.command("plan")
@click.argument("model", metavar="MODEL")
@nodes_option
@minimum_option
@room_option
@imatrix_option
@json_option
def plan_command(
    model: str, nodes: int, minimum: int | None, max_gb: str | None, imatrix: Path | None, as_json: bool
) -> None:
    """What each node would hold. Measures nothing and writes nothing.

    \b
    Examples:
      agentmesh moe plan Qwen3-30B-A3B                       two nodes, half of the experts on both
      agentmesh moe plan ./model.gguf --nodes 3 --json       for programs
      agentmesh moe plan ./model.gguf --max-gb 12            what nodes with 12 GB for weights can hold
    """
    work = ModelWork(model)
    counts = work.known_counts(imatrix)
    plan = work.plan(work.ranking(counts), work.rooms(nodes, max_gb), work.minimum(minimum))
    rows = work.rows(plan, counts)
    if as_json:
        emit_json(
            {**work.summary(counts), "core_experts": plan.core_count, "left_out": len(plan.left_out), "nodes": rows}
        )
        return
    work.show_summary(counts)
    for row in rows:
        click.echo(work.line(row))
    if plan.left_out:
        note(f"{len(plan.left_out)} of {work.count} experts a layer find no room on any node")


@moe.command("rank")
@click.argument("model", metavar="MODEL")
@imatrix_option
@click.option("--again", is_flag=True, help="Measure again what was measured before.")
@bin_dir_option
@json_option
def rank_command(model: str, imatrix: Path | None, again: bool, bin_dir: Path | None, as_json: bool) -> None:
    """Which experts are used most, layer by layer.

    From an importance matrix if one is given; else measured with the engine's llama-imatrix on a small text and remembered. That
    loads the whole model, so do it on the machine with most memory.

    \b
    Examples:
      agentmesh moe rank Qwen3-30B-A3B
      agentmesh moe rank ./model.gguf --imatrix ./model.imatrix.gguf --json
    """
    work = ModelWork(model)
    counts = work.counts(imatrix, bin_dir, again=again)
    work.must_be_ranked(counts)
    ranking = work.ranking(counts)
    if as_json:
        rows = [
            {"layer": layer, "experts": list(order), "counts": list(counts.layers.get(layer, ()))}
            for layer, order in zip(ranking.layers, ranking.order, strict=True)
        ]
        emit_json({**work.summary(counts), "unranked_layers": list(ranking.unranked_layers), "layers": rows})
        return
    work.show_summary(counts)
    for layer, order in zip(ranking.layers, ranking.order, strict=True):
        more = " ..." if work.count > SHOWN else ""
        uncounted = "  (nothing counted)" if layer in ranking.unranked_layers else ""
        click.echo(f"layer {layer:>4}  " + " ".join(f"{expert:>4}" for expert in order[:SHOWN]) + more + uncounted)


@moe.command("split")
@click.argument("model", metavar="MODEL")
@nodes_option
@click.option("--node", type=click.IntRange(1, MAX_NODES), metavar="I", help="Write only the part of node I, from 1.")
@click.option(
    "--experts",
    type=click.IntRange(1, MAX_EXPERTS),
    metavar="N",
    help="Write one part with the N most used experts a layer instead of a plan.",
)
@minimum_option
@room_option
@imatrix_option
@click.option(
    "--no-rank", is_flag=True, help="Measure nothing: without known counts, take the experts in the file's order."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Write here. [the home's shards]"
)
@bin_dir_option
@json_option
def split_command(
    model: str,
    nodes: int,
    node: int | None,
    experts: int | None,
    minimum: int | None,
    max_gb: str | None,
    imatrix: Path | None,
    no_rank: bool,
    output: Path | None,
    bin_dir: Path | None,
    as_json: bool,
) -> None:
    """Write the parts: GGUF files that any llama.cpp runs.

    What was written before is found again by its content. A part appears under its name only when it is whole.

    \b
    Examples:
      agentmesh moe split Qwen3-30B-A3B --nodes 2 --node 1      the first node's part
      agentmesh moe split ./model.gguf --experts 64             the 64 most used experts of each layer
      agentmesh moe split ./model.gguf --nodes 3 --output parts
    """
    if node is not None and node > nodes:
        raise InvalidInput(f"There is no node {node} of {nodes}.")
    named = click.get_current_context().get_parameter_source("nodes") is ParameterSource.COMMANDLINE
    if experts is not None and (named or node is not None or minimum is not None or max_gb is not None):
        raise InvalidInput(
            "--experts writes one part of its own; leave out --nodes, --node, --min-experts and --max-gb."
        )
    work = ModelWork(model)
    work.minimum(minimum if experts is None else experts)  # refused before anything is measured
    counts = work.known_counts(imatrix) if no_rank else work.counts(imatrix, bin_dir)
    parts = work.parts(counts, nodes, node, experts, minimum, max_gb)
    work.say_source(counts)
    written: list[dict[str, Any]] = []
    for name, kept in parts:
        row = {"node": name, **work.write(kept, output, f"writing {name or 'the part'}")}
        written.append(row)
        if not as_json:
            click.echo(safe_line(row["path"]))
    if as_json:
        emit_json({**work.summary(counts), "parts": written})
