"""A second run for tests of real processes that failed in the first; .ci/run calls it when `make test` failed.

A CI machine may stand still for a second at any moment. A fault of the code fails twice; a test that was only overtaken by
the machine passes alone, and is named at the end of the output, so that it is looked at. Nothing else is given a second
run: more than a few failures, or one of a test that needs neither processes nor time, are a fault at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
MAX_TESTS = 3
OF_PROCESSES = ("tests/integration/", "tests/e2e/")


def may_run_again(failed: Sequence[str]) -> bool:
    """Whether these tests, by their pytest ids, get a second run."""
    return 0 < len(failed) <= MAX_TESTS and all(name.startswith(OF_PROCESSES) and "::" in name for name in failed)


def main() -> int:
    failed = sorted(json.loads(LAST_FAILED.read_text("utf-8"))) if LAST_FAILED.exists() else []
    if not may_run_again(failed):
        print(f"No second run: {len(failed)} failed.")
        return 1
    print("\nA second run, alone, of those that failed:", *failed, sep="\n  ", flush=True)
    code = subprocess.run([sys.executable, "-m", "pytest", *failed], cwd=ROOT, check=False).returncode
    if code == 0:
        print("\nLOOK AT THESE: they passed only in the second run.", *failed, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main())
