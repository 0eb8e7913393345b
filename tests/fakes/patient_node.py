"""A node that cuts nothing off at its end, neither itself nor its parts: what is left is left by a fault, not by a machine that stood still.

home.start(..., prefix=PATIENT)       # the same command, in the same process
home.start(..., prefix=SLOW_ENDS)     # and if it waited for its workers' ends as while it goes on, it would do so for minutes
"""

from __future__ import annotations

import sys
from typing import Final

from agentmesh.cli.main import main
from agentmesh.inference.engine import run_program
from agentmesh.inference.split import host, running
from agentmesh.inference.split.host_lease import LeaseLimits
from agentmesh.node import process, runtime

PATIENT: Final = (sys.executable, "-m", "tests.fakes.patient_node")
SLOW: Final = "slow-ends"
SLOW_ENDS: Final = (*PATIENT, SLOW)
STOP_S: Final = 100.0
SLOW_S: Final = 300.0


def run(words: list[str]) -> None:
    """`words`: what is behind the prefix, python -m agentmesh and its own."""
    process.STOP_TIMEOUT_S = runtime.PART_TIMEOUT_S = run_program.END_S = STOP_S  # pyright: ignore
    if words[0] == SLOW:
        words = words[1:]
        running.CLOSE_S = SLOW_S  # pyright: ignore
        defaults = host.SplitHost.__init__.__kwdefaults__
        assert defaults is not None
        defaults["limits"] = LeaseLimits(end_s=SLOW_S)
    sys.argv = words[2:]
    assert sys.argv[0] == "agentmesh", words
    main()


if __name__ == "__main__":
    run(sys.argv[1:])
