"""Writes docs/limits.md from the limits modules, so that the page cannot drift from the code.

`python tools/limits_table.py` prints the page; `--write` saves it. A test compares the two.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from pathlib import Path

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
    "agentmesh.inference.engine.limits",
)
_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)(?:: Final)?(?:\[[a-z]+\])? = [^#]*?(?:#\s*(.*))?$")
_SECTION = re.compile(r"^# -{5,} (.+)$")

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
            lines += [f"\n### {section[1]}\n", "\n| name | value | why |\n|---|---|---|\n"]
            pending = []
        elif line.startswith("# "):
            pending.append(line[2:])
        elif entry := _LINE.match(line):
            value = getattr(module, entry[1])
            if isinstance(value, int | float):
                if len(lines) == 1:
                    lines.append("\n| name | value | why |\n|---|---|---|\n")
                lines.append(f"| `{entry[1]}` | {value:,} | {' '.join([*pending, entry[2] or '']).strip()} |\n")
            pending = []
    return "".join(lines)


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
