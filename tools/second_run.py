"""Further runs for tests of real processes that failed in the first; .ci/run calls it when `make test` failed.

A CI machine may stand still for a second at any moment. A test that was only overtaken by the machine passes alone, RUNS
times, and is named at the end of the output, so that it is looked at: a race of ours may hide there. Nothing else is run
again: more than a few failures, one of a test that needs neither processes nor time, or a run that broke off, are a fault
at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pytest_cache" / "v"
RAN_TO_ITS_END = 1  # and tests failed: pytest.ExitCode.TESTS_FAILED
MAX_TESTS = 3
RUNS = 3
OF_PROCESSES = ("tests/integration/", "tests/e2e/")


def may_run_again(failed: Sequence[str], exit_status: object) -> bool:
    """Whether these tests, by their pytest ids, are run again after a run that ended so."""
    few = 0 < len(failed) <= MAX_TESTS
    return (
        exit_status == RAN_TO_ITS_END and few and all(name.startswith(OF_PROCESSES) and "::" in name for name in failed)
    )


def _told(path: Path) -> object:
    """What pytest left there (see tests/conftest.py), or None."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def main() -> int:
    known, status = _told(CACHE / "cache" / "lastfailed"), _told(CACHE / "agentmesh" / "exitstatus")
    failed = sorted(known) if isinstance(known, dict) else []
    if not may_run_again(failed, status):
        print(f"No further run: {len(failed)} failed, and pytest ended with {status}.")
        return 1
    for number in range(1, RUNS + 1):
        print(f"\nRun {number} of {RUNS}, alone, of those that failed:", *failed, sep="\n  ", flush=True)
        code = subprocess.run([sys.executable, "-m", "pytest", *failed], cwd=ROOT, check=False).returncode
        if code:
            return code
    print("\nLOOK AT THESE: they failed in the whole run, and passed alone.", *failed, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
