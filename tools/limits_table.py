"""Writes docs/limits.md from the limits modules, so that the page cannot drift from the code.

`python tools/limits_table.py` prints the page; `--write` saves it. A test compares the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "agentmesh.mesh.logic.limits",
    "agentmesh.mesh.logic.transport_limits",
    "agentmesh.mesh.logic.bulk_limits",
    "agentmesh.blackboard.logic.limits",
    "agentmesh.blackboard.logic.scrub_limits",
    "agentmesh.blackboard.logic.mcp_limits",
    "agentmesh.inference.logic.proxy_limits",
    "agentmesh.inference.logic.route_limits",
    "agentmesh.inference.logic.presence_timing",
    "agentmesh.inference.logic.presence",
    "agentmesh.inference.logic.blob_limits",
    "agentmesh.inference.logic.rpc_limits",
    "agentmesh.inference.logic.split_limits",
    "agentmesh.inference.logic.split_offer",
    "agentmesh.inference.logic.job_wire",
    "agentmesh.inference.split.heard",
    "agentmesh.inference.split.rtt",
    "agentmesh.inference.split.telling",
    "agentmesh.inference.split.host",
    "agentmesh.inference.split.host_lease",
    "agentmesh.inference.split.running",
    "agentmesh.inference.split.worker",
    "agentmesh.inference.split.worker_job",
    "agentmesh.inference.engine.limits",
)
_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)(?:: Final)?(?:\[[a-z]+\])? = [^#]*?(?:#\s*(.*))?$")
_SECTION = re.compile(r"^# -{5,} (.+)$")
_ATTRIBUTE = re.compile(r"^    ([a-z_]+(?:, [a-z_]+)*): ((?:.|\n(?!    [a-z_]+(?:, [a-z_]+)*: ))*)", re.MULTILINE)
_TABLE = "\n| name | value | why |\n|---|---|---|\n"

HEAD = """# Limits

Everything that a node holds, waits for or accepts is bounded. This page is written from the code by `tools/limits_table.py`.

## What ends where, and what then

| what arrives | limit | what happens beyond it |
|---|---|---|
| a connection without an invite or certificate | 5 s, 64 handshakes at once, 4 from one address | closed; nothing but the handshake is ever answered |
| a control frame | 1 MiB, checked before allocation | the connection is closed |
| records of one author | the mesh's policy (`agentmesh status` shows it) | the same ones are kept on every node, the rest is refused |
| records nobody honest could have sent | 32 | the peer is disconnected |
| what waits for one slow peer | 4 MiB | the peer is dropped; reconciliation repairs it later |
| a text to post | 16 KiB raw, 4,096 bytes scrubbed | refused with its size |
| a request to a model | 64 MiB, 512 MiB of all together | 413, 503 |
| requests that wait for a model | a bounded queue | 429 with `Retry-After` |
| models of hosts on one worker | 4, within the memory of the plan | refused; the host plans again |
| a host or worker that says nothing | 10 s | the lease ends, the RPC server with it |

What is *not* bounded by the protocol: a member who is not revoked may use its whole quota, and so may every key in an inviter's subtree up to eight quotas together.
A mesh of more than a few hundred busy members that were all admitted with one invite should raise `posts_per_day` (`--policy`), or use more invites.
"""


def page() -> str:
    """The whole page in Markdown."""
    return HEAD + "".join(_module_section(name) for name in MODULES)


def _module_section(name: str) -> str:
    module = importlib.import_module(name)
    lines = [f"\n## `{name}`\n"]
    pending: list[str] = []
    for line in inspect.getsource(module).splitlines():
        if section := _SECTION.match(line):
            if len(lines) > 1 and lines[-1] == _TABLE:  # a section without numbers
                del lines[-2:]
            lines += [f"\n### {section[1]}\n", _TABLE]
            pending = []
        elif line.startswith("# "):
            pending.append(line[2:])
        elif entry := _LINE.match(line):
            value = getattr(module, entry[1])
            if isinstance(value, int | float):
                if len(lines) == 1:
                    lines.append(_TABLE)
                lines.append(f"| `{entry[1]}` | {value:,} | {' '.join([*pending, entry[2] or '']).strip()} |\n")
            pending = []
    if len(lines) > 1 and lines[-1] == _TABLE:
        del lines[-2:]
    rows = [row for value in vars(module).values() if _holds_limits(value, name) for row in _fields(value)]
    if rows and len(lines) == 1:
        lines.append(_TABLE)
    return "".join([*lines, *rows])


def _holds_limits(value: object, module: str) -> TypeGuard[type]:
    return isinstance(value, type) and value.__name__.endswith("Limits") and value.__module__ == module


def _fields(limits: type) -> list[str]:
    """A row for each number of a class of limits; its docstring says why, where it does."""
    why: dict[str, str] = {}
    for names, text in _ATTRIBUTE.findall(inspect.getdoc(limits) or ""):
        why |= dict.fromkeys(names.split(", "), " ".join(text.split()).rstrip("."))
    found = {field.name: field.default for field in dataclasses.fields(limits)}
    return [
        f"| `{limits.__name__}.{name}` | {value:,} | {why.get(name, '')} |\n"
        for name, value in found.items()
        if isinstance(value, int | float)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="save docs/limits.md")
    target = ROOT / "docs" / "limits.md"
    if parser.parse_args().write:
        target.write_text(page(), "utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
