"""docs/cli.md says what the commands say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_page_is_current() -> None:
    # In a process of its own: click remembers in each command the names that its help option had when it was first used.
    made = subprocess.run(
        [sys.executable, "-m", "agentmesh.cli.reference"], capture_output=True, cwd=ROOT, check=True, timeout=60
    )
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert page == made.stdout.decode("utf-8"), "run: python -m agentmesh.cli.reference > docs/cli.md"
