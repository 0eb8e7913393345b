"""Runs every benchmark and writes what they print into docs/benchmarks.md, between the page's hand-written parts.

    python benchmarks/run_all.py [NAME ...]

Without names all of them, in order; with names only those sections are replaced. A section is everything between
`<!-- begin NAME -->` and `<!-- end NAME -->`; the text around it is kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
SECTION = re.compile(r"<!-- begin ([\w ./-]+) -->\n.*?<!-- end \1 -->", re.DOTALL)
TIMEOUT_S = 1_800


def run(command: str) -> str:
    """The section for one benchmark: its command, and what it printed."""
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if result.returncode != 0:
        raise SystemExit(f"{command} failed:\n{result.stdout}\n{result.stderr}")
    print(f"{command}: {time.monotonic() - began:.0f} s", flush=True)
    output = result.stdout.strip()
    body = output if output.startswith("|") else f"```\n{output}\n```"
    return f"<!-- begin {command} -->\n`python {command}`\n\n{body}\n<!-- end {command} -->"


def main() -> None:
    wanted = sys.argv[1:]
    page = PAGE.read_text("utf-8")
    for command in SECTION.findall(page):
        if not wanted or any(name in command for name in wanted):
            section = run(command)
            page = re.sub(
                rf"<!-- begin {re.escape(command)} -->\n.*?<!-- end {re.escape(command)} -->",
                lambda _, section=section: section,
                page,
                flags=re.DOTALL,
            )
            PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
