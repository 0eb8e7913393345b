"""A node that cuts nothing off at its end, neither itself nor its parts: what is left is left by a fault, not by a machine that stood still.

home.start(..., prefix=UNHURRIED)       # the same command, in the same process
"""

from __future__ import annotations

import sys
from typing import Final

from agentmesh.cli.main import main
from agentmesh.inference.engine import run_program
from agentmesh.node import process, runtime

UNHURRIED: Final = (sys.executable, "-m", "tests.fakes.unhurried_node")
CUT_OFF_S: Final = 100.0

if __name__ == "__main__":
    process.STOP_TIMEOUT_S = runtime.PART_TIMEOUT_S = run_program.END_S = CUT_OFF_S  # pyright: ignore
    sys.argv = sys.argv[3:]  # without python -m
    assert sys.argv[0] == "agentmesh", sys.argv
    main()
