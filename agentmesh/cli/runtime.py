"""Commands about the models that this home's node serves: load, unload, drop.

Owns the words. The node does the work; a `load` that is broken off here goes on there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from agentmesh.cli.node import parse_gigabytes
from agentmesh.cli.node_options import split_options
from agentmesh.cli.output import bytes_text, emit_json, note, safe_line
from agentmesh.cli.split_flags import split_body
from agentmesh.control.api_keys import KEY_VARIABLE
from agentmesh.control.client import NodeClient
from agentmesh.core.errors import AgentMeshError, InvalidInput, NoNode
from agentmesh.core.paths import Home

POLL_S: Final = 0.25  # the first second; a small model is ready by then
SLOW_POLL_S: Final = 1.0
ADMIT_TIMEOUT_S: Final = 180.0  # the hub is asked, the file's header read, devices listed: each has its own bound
UNLOAD_TIMEOUT_S: Final = 60.0  # an engine gets its grace, then is killed
ENDED: Final = ("ready", "failed", "standby")
LOCAL_PREFIXES: Final = ("./", "../", "~")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("--ctx-size", type=click.IntRange(min=1), metavar="TOKENS", help="Context of each request. [what fits]")
@click.option(
    "--slots", type=click.IntRange(1, 64), metavar="N", help="Requests that run at once. [what fits, up to 4]"
)
@click.option("--max-vram", metavar="GB", help="Memory that all models together may use, in GB. [what is free]")
@click.option("--device", metavar="NAME", help="Run it on this device, or 'none' for the CPU. [the best one]")
@split_options
@click.option("--no-wait", is_flag=True, help="Return as soon as the node has taken it on.")
@_json
def load(
    model: str,
    ctx_size: int | None,
    slots: int | None,
    max_vram: str | None,
    device: str | None,
    no_wait: bool,
    as_json: bool,
    **more: Any,
) -> None:
    """Serve a model on this home's node, downloading it if need be.

    MODEL is a catalog name, org/repo/file.gguf, org/repo[:QUANT], a Hugging Face URL, or a path. The node serves it again after a
    restart, until 'agentmesh drop'; one that a command starts in the background loads nothing unasked. Interrupting this command
    leaves the load going.

    \b
    Examples:
      agentmesh load 7b                                          a model of the catalog
      agentmesh load bartowski/Qwen2.5-3B-Instruct-GGUF:Q8_0     of Hugging Face
      agentmesh load ./models/mine.gguf --ctx-size 65536         a file
      agentmesh load qwen3-32b --split                           spread over the mesh if no node can hold it
    """
    name, is_path = as_reference(model)
    body = {
        "model": name,
        "is_path": is_path,
        "ctx_size": ctx_size,
        "max_vram": parse_gigabytes(max_vram) if max_vram is not None else None,
        "device": device,
        "slots": slots,
        **split_body(more),
    }
    client = _client()
    status = client.request("POST", "/api/runtime/models", json=body, timeout_s=ADMIT_TIMEOUT_S)
    if not no_wait:
        try:
            status = follow(client, status)
        except KeyboardInterrupt:
            note(f"the node goes on loading {status['id']}; agentmesh status shows it, agentmesh unload ends it")
            raise
    if as_json:
        emit_json(status)
    elif status["state"] in ("ready", "standby"):
        click.echo(safe_line(status["id"]))
        _show_hints(client, str(status["id"]))
    else:
        note(f"{status['id']}: {status['state']}")


@click.command()
@click.argument("name", metavar="NAME")
@_json
def unload(name: str, as_json: bool) -> None:
    """End a model and free its memory. It is served again after a restart of the node; see 'agentmesh drop'.

    \b
    Example:
      agentmesh unload 7b
    """
    _end(name, forget=False, as_json=as_json)


@click.command()
@click.argument("name", metavar="NAME")
@_json
def drop(name: str, as_json: bool) -> None:
    """End a model and forget it: the next start does not serve it. Its files stay; see 'agentmesh models delete'.

    \b
    Example:
      agentmesh drop 7b
    """
    _end(name, forget=True, as_json=as_json)


def _end(name: str, *, forget: bool, as_json: bool) -> None:
    wanted, is_path = as_reference(name)
    path = f"/api/runtime/models/{quote(wanted if is_path else name, safe='')}"
    params = {"forget": "1"} if forget else None
    done = _client().request("DELETE", path, params=params, timeout_s=UNLOAD_TIMEOUT_S)
    if as_json:
        emit_json(done)
    else:
        note(str(done["message"]))


class _Client(NodeClient):
    """The node that runs; none is started: a node that was started by itself serves no models."""

    def request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            return super().request(method, path, **more)
        except NoNode as error:
            if type(error) is not NoNode:
                raise
            raise NoNode(f"{error.message} Start one that serves models: agentmesh --model NAME") from error


def _client() -> _Client:
    return _Client(Home.from_environment())


def as_reference(text: str) -> tuple[str, bool]:
    """(reference, is a path). Paths are made whole here: the node's working directory is another one."""
    if "://" in text:
        return text, False
    looks_local = text.startswith(("/", *LOCAL_PREFIXES))
    if looks_local or (text.lower().endswith(".gguf") and Path(text).is_file()):
        try:
            return str(Path(text).expanduser().absolute()), True
        except (RuntimeError, OSError) as error:
            raise InvalidInput(f"'{text}' leads nowhere: {error}.") from error
    if text.lower().endswith(".gguf") and text.count("/") < 2:
        return str(Path(text).absolute()), True
    return text, False


# ------------------------------------------------------------------ following a load


def follow(client: NodeClient, status: Mapping[str, Any]) -> dict[str, Any]:
    """Show on stderr what becomes of a model until it is ready.

    Raises:
        AgentMeshError: it failed, or somebody unloaded it.
    """
    current, shown, began = dict(status), _Shown(), time.monotonic()
    while True:
        shown.show(current)
        if current["state"] in ENDED:
            break
        time.sleep(POLL_S if time.monotonic() - began < 1 else SLOW_POLL_S)
        rows = client.request("GET", "/api/runtime/models")["models"]
        found = [row for row in rows if row["id"] == current["id"]]
        if not found:
            shown.end()
            raise AgentMeshError(f"{current['id']} was unloaded meanwhile.")
        current = dict(found[0])
    shown.end()
    if current["state"] == "failed":
        raise AgentMeshError(f"{current['id']} could not be served: {current['reason']}")
    return current


class _Shown:
    """One line that moves in a terminal; elsewhere a line when something new is to be said."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._is_open = False

    def show(self, status: Mapping[str, Any]) -> None:
        line = progress_line(status, fine=self._terminal)
        if line == self._last:
            return
        self._last = line
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
            self._is_open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._is_open:
            print(file=sys.stderr, flush=True)
            self._is_open = False


def progress_line(status: Mapping[str, Any], *, fine: bool = True) -> str:
    """`7b…: downloading, 42 %, 1.9 GB of 4.7 GB`, in tenths unless `fine`."""
    parts = [str(status["state"])]
    progress = status.get("progress")
    if progress:
        done, total = int(progress["done_bytes"]), max(int(progress["total_bytes"]), 1)
        percent = 100 * done // total
        parts.append(f"{percent if fine else percent // 10 * 10} %")
        if fine:
            parts.append(f"{bytes_text(done)} of {bytes_text(total)}")
    if status["state"] == "ready":
        parts.append(
            f"{int(status['context_tokens']):,} tokens of context, {status['slots']} at once, on {_place(status)}"
        )
    elif status["state"] in ("waiting", "loading", "standby") and status.get("reason"):
        parts.append(str(status["reason"]))
    return safe_line(f"{status['id']}: {', '.join(parts)}")


def _place(status: Mapping[str, Any]) -> str:
    if status.get("role") == "host":
        return f"{len(status['nodes'])} nodes"
    return str(status.get("device") or "the CPU")


def _show_hints(client: NodeClient, model: str) -> None:
    """How agents use a model that is ready."""
    from agentmesh.launchers.hints import launch_hints

    port = client.request("GET", "/api/status").get("api_port")
    if isinstance(port, int):
        print(
            "\n".join(
                safe_line(line) for line in launch_hints(port, model, asks_key=KEY_VARIABLE in os.environ).split("\n")
            ),
            file=sys.stderr,
            flush=True,
        )
