"""A program that stands for a coding agent: it records how it was started and ends as it is told.

    agent = FakeAgent(folder, "claude")     # folder/claude is the program; put folder on the PATH
    agent.record()                          # {"argv": [...], "environment": {...}, "tty": ..., "group": ...}

What it does is in $FAKE_AGENT: `exit N`, `die N` (by signal N), `wait` (for a signal: it writes the signal's number into its
record and exits with 40 + the number; `ready` appears beside its record when it waits).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """#!{python} -S
import json, os, signal, sys
base = {base!r}
if sys.argv[1:] == ["--version"]:
    print({version!r}); sys.exit(0)
record = {{"argv": sys.argv[1:], "environment": dict(os.environ), "group": os.getpgrp(), "pid": os.getpid(),
          "sigint": str(signal.getsignal(signal.SIGINT))}}
def save():
    new = f"{{base}}.{{os.getpid()}}.new"
    with open(new, "w") as file:
        json.dump(record, file)
    os.replace(new, base + ".json")
save()
print("answer of the agent", flush=True)
verb, _, number = os.environ.get("FAKE_AGENT", "exit 0").partition(" ")
if verb == "die":
    if number != "9":
        signal.signal(int(number), signal.SIG_DFL)
    os.kill(os.getpid(), int(number))
if verb == "wait":
    def caught(number, frame):
        record["signal"] = number
        save()
        sys.exit(40 + number)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, caught)
    open(base + ".ready", "w").close()
    signal.alarm(110)
    while True:
        signal.pause()
sys.exit(int(number or 0))
"""


class FakeAgent:
    """The program `name` in `folder`."""

    def __init__(self, folder: Path, name: str, version: str = "1.0.0") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._base = folder / f".{name}"
        self.ready = folder / f".{name}.ready"
        program = folder / name
        program.write_text(_PROGRAM.format(python=sys.executable, base=str(self._base), version=version))
        program.chmod(0o755)

    @property
    def ran(self) -> bool:
        return Path(f"{self._base}.json").exists()

    def record(self) -> dict[str, Any]:
        return json.loads(Path(f"{self._base}.json").read_text())
