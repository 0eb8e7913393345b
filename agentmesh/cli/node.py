"""Commands about the node and its mesh: status, invite, revoke, leave, stop, and becoming a node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from agentmesh.cli.output import bytes_text, emit_json, note, safe_line
from agentmesh.cli.split_flags import parse_rpc_peers, split_body
from agentmesh.control.api_keys import KEY_VARIABLE, api_keys
from agentmesh.control.client import NodeClient
from agentmesh.control.errors import NodeLost
from agentmesh.control.lock import FileLock, wait_until_free
from agentmesh.control.start import END_TIMEOUT_S, is_changing, request_if_present, request_with_node
from agentmesh.control.tokens import JOIN_VARIABLE, join_tokens
from agentmesh.core.errors import AgentMeshError, InvalidInput, NoNode
from agentmesh.core.paths import Home
from agentmesh.core.units import parse_duration_ms

if TYPE_CHECKING:
    from agentmesh.node.options import ServeOptions

POLICY_KEYS: Final = ("posts_per_minute", "posts_per_day", "author_posts_per_minute")
MAX_ID_CHARS: Final = 128  # twice the longest id
MAX_POLICY_VALUE: Final = 1_000_000_000
MAX_TABLE_COLUMNS: Final = 2_000  # more than the longest names together
MAX_SIZE_CHARS: Final = 12


def run_node(options: Mapping[str, Any]) -> int:
    """Become the node of this home, in the foreground or (hidden) as the detached process that a thin client starts."""
    if options["background"]:
        _fork_off()
    from agentmesh.node.options import NodeOptions

    keys = api_keys(options["api_key"])
    if options["listen_all"] and not keys:
        raise InvalidInput(
            "--listen-all lets other machines use the models: it needs a key, with --api-key @FILE or in $AGENTMESH_API_KEY."
        )
    chosen = NodeOptions(
        background=bool(options["background"]),
        ready_fd=options["ready_fd"],
        join=join_tokens(options["join"]),
        name=options["name"],
        api_port=options["port"],
        console_port=options["console"],
        bind_port=options["bind_port"],
        policy=parse_policy(options["policy"]),
        serve=_serve_options(options),
        listen_all=bool(options["listen_all"]),
        api_keys=keys,
    )
    _check_files(chosen.serve.ggufs)
    if options["background"]:
        _drop_stdin()
    for read_above in (JOIN_VARIABLE, KEY_VARIABLE):  # the workers and engines that the node starts need neither
        os.environ.pop(read_above, None)
    from agentmesh.node.process import run_process

    code = run_process(Home.from_environment(), chosen)
    raise click.exceptions.Exit(code)


def _check_files(ggufs: Sequence[str]) -> None:
    """A node without the file that it was started for would run, and nobody look at why it serves nothing."""
    for name in ggufs:
        try:
            path = Path(name).expanduser()
            if path.is_file():
                path.open("rb").close()
                continue
            why = "It is no file." if path.exists() else "There is no such file."
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: of ~nobody; ValueError: a NUL
            why = f"{(getattr(error, 'strerror', None) or str(error)).rstrip('.')}."
        raise InvalidInput(f"--gguf '{safe_line(name)}' can't be read. {safe_line(why)}")


def _serve_options(options: Mapping[str, Any]) -> ServeOptions:
    from agentmesh.node.options import ServeOptions

    body = split_body(options)
    everyone, lends_to = parse_rpc_peers(options["rpc_peers"])
    if options["weights"] is not None and options["rpc_peers"] is None and "split" not in body:
        raise InvalidInput("--weights belongs to --rpc-peers or --split. Add one of them, or leave it out.")
    return ServeOptions(
        client=bool(options["client"]),
        models=options["models"],
        ggufs=options["ggufs"],
        context_tokens=options["ctx_size"],
        max_vram_bytes=parse_gigabytes(options["max_vram"]) if options["max_vram"] is not None else None,
        device=options["device"],
        bin_dir=Path(options["bin_dir"]).expanduser().absolute() if options["bin_dir"] is not None else None,
        llama_flavor=options["llama_flavor"],
        split=body.get("split"),
        draft=body.get("draft"),
        # Who asks others for their memory gives his own, unless he says to whom.
        lends_to_all=everyone or ("split" in body and options["rpc_peers"] is None),
        lends_to=lends_to,
        streams_weights=options["weights"] == "stream",
    )


def parse_gigabytes(text: str) -> int:
    """Bytes of a size in GB (10^9), such as `24`, `7.5` or `7.5GB`. Raises: InvalidInput: it is none, or not positive."""
    number = text.strip().lower().removesuffix("gb").strip()
    try:
        size_bytes = int(float(number) * 1e9) if len(number) <= MAX_SIZE_CHARS else 0
    except (ValueError, OverflowError):
        size_bytes = 0
    if size_bytes <= 0:
        raise InvalidInput(f"'{text}' is no size; give GB, such as 24 or 7.5.")
    return size_bytes


def _fork_off() -> None:
    """Go on as a child of init: whoever starts a node may live long (an MCP server) and shall keep no zombie."""
    if os.fork() > 0:
        os._exit(0)


def _drop_stdin() -> None:
    """The tokens that came over it are read; nothing else does."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)


def parse_policy(pairs: tuple[str, ...]) -> dict[str, int]:
    """`KEY=N` pairs as quotas. Raises: InvalidInput: an unknown key, or a value that is no positive number."""
    policy: dict[str, int] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in POLICY_KEYS:
            raise InvalidInput(f"'{key}' is no quota; there are {', '.join(POLICY_KEYS)}.")
        if not (value.isascii() and value.isdigit() and 0 < int(value) <= MAX_POLICY_VALUE):
            raise InvalidInput(f"{key} must be a whole number from 1 to {MAX_POLICY_VALUE}, not '{value}'.")
        policy[key] = int(value)
    return policy


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show this home's node, its mesh and its peers.

    Starts nothing: when no node runs, it says so and exits with 3.
    """
    home = Home.from_environment()
    try:
        report = NodeClient(home).request("GET", "/api/status")
    except NoNode as error:
        if type(error) is not NoNode:  # it is there but silent, stopping or somebody else's
            raise
        if is_changing(home):
            raise NoNode(
                f"The node of {home.root} does not answer now: it starts, looks for its mesh, or ends."
            ) from error
        raise NoNode(
            f"{error.message} To start one: agentmesh --client, or any agentmesh blackboard command."
        ) from error
    if as_json:
        emit_json(report)
    else:
        _show_status(report)


def _show_status(report: Mapping[str, Any]) -> None:
    facts = {
        "node": f"{report['name']}  {report['node_id']}",
        "mesh": f"{report['mesh_name']}  {report['mesh_id']}",
        "state": report["state"],
        "version": report["version"],
        "ports": ", ".join(
            f"{label} {report[key]}"
            for label, key in (("console", "console_port"), ("bind", "bind_port"), ("api", "api_port"))
            if report.get(key) is not None
        ),
        "posts": report["blackboard"]["posts"],
        "quotas": ", ".join(f"{key} {value}" for key, value in report["policy"].items()),
    }
    for label, value in facts.items():
        click.echo(f"{label + ':':9} {safe_line(value)}")
    show_models(report)
    _show_lent(report.get("lent", ()), _names(report))
    _show_peers(cast("list[dict[str, Any]]", report["peers"]))


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    return {report["node_id"]: report["name"]} | {peer["node_id"]: peer["name"] for peer in report["peers"]}


def show_models(report: Mapping[str, Any]) -> None:
    """The models of a status report: a table, and below it why those are not ready that are not."""
    models = cast("list[dict[str, Any]]", report["models"])
    click.echo(f"{'models:':9} {len(models)}")
    if not models:
        return
    names = _names(report)
    rows = [
        (
            model["id"],
            model["state"],
            f"{model['context_tokens']:,}" if model["context_tokens"] else "",
            model["slots"] or "",
            ", ".join(names.get(node) or node[:12] for node in model["nodes"]),
        )
        for model in models
    ]
    _show_table(("model", "state", "context", "slots", "on"), rows)
    for model in models:
        for line in _about_model(model):
            is_about_it = line.startswith(f"{model['id']} ")  # "7b needs 6.9 GB: …"
            click.echo(safe_line(line if is_about_it else f"{model['id']}: {line}"))


def _about_model(model: Mapping[str, Any]) -> Iterable[str]:
    """Why it is in its state, and how it is spread, if it is."""
    reason = next(iter(model["reason"].splitlines()), "")
    if reason:
        yield reason
    if model.get("role") in ("host", "shard", "alone") and model.get("plan"):
        yield model["plan"]
    for worker in model.get("workers", ()):
        yield _about_worker(worker)
    for doubt in model.get("doubts", ()):
        yield str(doubt["sentence"])
    yield from model.get("advice", ())
    if model.get("draft"):
        yield model["draft"]


def _about_worker(worker: Mapping[str, Any]) -> str:
    said = f"worker {worker['name']}: {worker['layers']} layers, {bytes_text(worker['share_bytes'])}"
    if not worker["round_trips"]:  # not in use yet
        return f"{said}; {worker['state']}"
    files = "" if worker["has_files"] else ", without the model's files"
    overdue = f", waiting for {worker['overdue_s']:.0f} s" if worker["overdue_s"] >= 1 else ""
    return (
        f"{said}{files}; {worker['round_trips']:,} round trips, {worker['sent_bytes'] / 1e6:.1f} MB sent, "
        f"{worker['received_bytes'] / 1e6:.1f} MB received{overdue}"
    )


def _show_lent(parts: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """The parts of models that this node computes for hosts."""
    for part in parts:
        host = names.get(part["host"]) or part["host"][:12]
        click.echo(
            safe_line(
                f"{'lent:':9} {bytes_text(part['held_bytes'])} to {host} for {part['model']}: {part['reason'] or part['state']}"
            )
        )


def _show_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    # A table that is wider than the terminal, or than the 80 columns that rich takes a pipe for, would lose its words.
    Console(soft_wrap=True, width=MAX_TABLE_COLUMNS).print(table)


def _show_peers(peers: list[dict[str, Any]]) -> None:
    click.echo(f"{'peers:':9} {len(peers)}")
    if not peers:
        return
    rows = [
        (
            str(peer["node_id"])[:12],
            peer["name"],
            peer["state"],
            peer.get("address") or "",
            f"{peer['rtt_ms']:.1f} ms" if peer.get("rtt_ms") is not None else "",
        )
        for peer in peers
    ]
    _show_table(("node", "name", "state", "address", "rtt"), rows)


def _plain(cell: object) -> Any:
    """Other people's names are text, not rich's markup."""
    from rich.text import Text

    return Text(safe_line(cell))


@click.command()
@click.option("--expires", metavar="DURATION", help="How long it can be used: 30s, 15m, 12h, 7d. [7d]")
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), metavar="N", help="How many nodes may join with it. [any number]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {token, invite_id, expires_at, uses}.")
def invite(expires: str | None, uses: int | None, as_json: bool) -> None:
    """Print an invite token for this node's mesh.

    Whoever has the token can join and read the board: hand it over like a password.
    """
    body = {"expires_ms": parse_duration_ms(expires) if expires is not None else None, "uses": uses}
    made = request_with_node(Home.from_environment(), "POST", "/api/mesh/invite", json=body)
    if as_json:
        emit_json(made)
    else:
        click.echo(made["token"])


@click.command()
@click.argument("target", metavar="NODE|INVITE")
def revoke(target: str) -> None:
    """Take a node's membership, or an invite, back.

    NODE or INVITE is an id or its beginning. A revoked node is disconnected everywhere and its posts are dropped.
    """
    if target.startswith("amesh1."):
        raise InvalidInput(
            "That is an invite token; give the invite's id, which agentmesh invite --json prints as invite_id."
        )
    if not (target.isascii() and target.isalnum() and len(target) <= MAX_ID_CHARS):
        raise InvalidInput(
            "A node id or an invite id is letters and digits; the first 8 are enough. See agentmesh status."
        )
    done = request_with_node(Home.from_environment(), "POST", "/api/mesh/revoke", json={"target": target})
    note(str(done["message"]))


@click.command()
def leave() -> None:
    """Forget the membership of the present mesh, and stop the node.

    The next start founds a mesh of this home's own, or joins another with --join.
    """
    home = Home.from_environment()
    home.prepare()
    done: dict[str, Any] | None = None
    try:
        done = request_if_present(home, "POST", "/api/node/leave")
        _await_end(home)
    except NoNode as error:
        if isinstance(error, NodeLost):
            raise
    if done is None:
        with _as_holder(home):
            from agentmesh.mesh.membership_file import forget_membership

            forgotten = forget_membership(home)
        done = {"message": "Left the mesh." if forgotten else "This home is on no mesh."}
    note(str(done["message"]))


@click.command()
def stop() -> None:
    """Stop this home's node.

    Its mesh and its board stay for the next start. One that is just starting is awaited, and stopped.
    """
    home, said = Home.from_environment(), "The node ended."
    with contextlib.suppress(NodeLost):
        if (done := request_if_present(home, "POST", "/api/node/stop")) is not None:
            said = str(done["message"])
    _await_end(home)
    note(said)


def _await_end(home: Home) -> None:
    if not wait_until_free(home.lock, END_TIMEOUT_S):
        raise AgentMeshError(f"The node was told to stop but still runs after {END_TIMEOUT_S:.0f} s.")


@contextlib.contextmanager
def _as_holder(home: Home) -> Any:
    lock = FileLock.acquire(home.lock, timeout_s=1.0)
    if lock is None:
        raise NoNode(f"A node holds the home {home.root} but does not answer.")
    with lock:
        yield
