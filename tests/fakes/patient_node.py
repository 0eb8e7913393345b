"""A node that cuts nothing off at its end, neither itself nor its parts: what is left is left by a fault, not by a machine that stood still.

home.start(..., prefix=PATIENT)       # the same command, in the same process
"""

from __future__ import annotations

import sys
from typing import Final

from agentmesh.cli.main import main
from agentmesh.inference.engine import run_program
from agentmesh.node import process, runtime

PATIENT: Final = (sys.executable, "-m", "tests.fakes.patient_node")
STOP_S: Final = 100.0


def run(words: list[str]) -> None:
    """`words`: what is behind the prefix, python -m agentmesh and its own."""
    process.STOP_TIMEOUT_S = runtime.PART_TIMEOUT_S = run_program.END_S = STOP_S  # pyright: ignore
    sys.argv = words[2:]
    assert sys.argv[0] == "agentmesh", words
    main()


if __name__ == "__main__":
    run(sys.argv[1:])
