"""A scrub worker that speaks the real frames and misbehaves when a text tells it to. Starts in a tenth of a second.

`HANG` in a text: it never answers, with signals as they are by default; `DIE`: it ends; `BABBLE`: it answers another number;
`SPIN`: it computes for ever; `HUGE`: it announces a frame over the limit. `SLOW`: it takes 50 ms. Options: `--deaf` is never ready, `--broken` says so.
"""

from __future__ import annotations

import os
import sys
import time

from agentmesh.blackboard import scrub_frames as frames
from agentmesh.blackboard import scrub_worker as real

SPIN_S = 0.3  # of processor time
CPU_LIMIT_S = 60.0  # for any other text: a machine that stands still may count that as well


def main() -> None:
    setup = real._read(0)
    assert isinstance(setup, frames.Setup)
    if "--deaf" in sys.argv:
        time.sleep(3600)
    if "--broken" in sys.argv:
        real._write(1, frames.Broken("ImportError"))
        return
    real._write(1, frames.Ready())
    while (request := real._read(0)) is not None:
        assert isinstance(request, frames.Text)
        real.set_alarms(SPIN_S if "SPIN" in request.text else CPU_LIMIT_S, setup.alarm_s)
        _misbehave(request)
        real.set_alarms(0, 0)
        real._write(1, frames.Scrubbed(request.number, request.text.lower(), (), "SECRET" in request.text))


def _misbehave(request: frames.Text) -> None:
    if "HANG" in request.text:
        while True:
            time.sleep(3600)
    while "SPIN" in request.text:
        pass
    if "DIE" in request.text:
        os._exit(3)
    if "BABBLE" in request.text:
        real._write(1, frames.Scrubbed(request.number + 5, "", (), mostly_secret=False))
    if "HUGE" in request.text:
        os.write(1, (1 << 30).to_bytes(4, "big"))
    if "SLOW" in request.text:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
