"""The scrub worker: a process that reads texts from stdin and answers on stdout, so that no text can stall or bloat the node.

Owns the process only; the rules are in logic/, the frames in scrub_frames.py, its parent in scrub.py. It ends when its stdin
closes, which happens too when the node is killed, and kills itself with an alarm when a text takes too long, which works even
inside a regular expression: whatever becomes of the node, nothing is left behind. It writes no log, since a log could quote
the text.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from agentmesh.blackboard import scrub_frames as frames
from agentmesh.blackboard.logic.scrub_limits import MAX_REPLY_BYTES, TEXT_CPU_LIMIT_S

if TYPE_CHECKING:
    from scrubadub import Scrubber

_SAMPLE: Final = "reach someone@host.invalid.org for it"


def main() -> int:
    """Serve until stdin closes. 0: it closed; 1: the worker could not start; 2: a frame made no sense."""
    requests, answers = _claim_pipes()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for alarm in (signal.SIGALRM, signal.SIGPROF):  # the default ends the process, without waiting for the interpreter
        signal.signal(alarm, signal.SIG_DFL)
    try:
        setup = _read(requests)
        if not isinstance(setup, frames.Setup):
            return 0 if setup is None else 2
        try:
            scrubber = _warmed(setup)
        except Exception as error:  # noqa: BLE001  the task root of this process; the reason goes to the node, which logs it
            _write(answers, frames.Broken(type(error).__name__))
            return 1
        _write(answers, frames.Ready())
        return _serve(requests, answers, scrubber, setup.alarm_s)
    except frames.FrameError:
        return 2
    except BrokenPipeError:
        return 0


def _claim_pipes() -> tuple[int, int]:
    """Our own descriptors for the two pipes, so that a library's print cannot break a frame."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return requests, answers


def _warmed(setup: frames.Setup) -> Scrubber:
    from agentmesh.blackboard.scrub_detectors import build_scrubber, scrub_with

    scrubber = build_scrubber(setup.context)
    masked, _ = scrub_with(scrubber, _SAMPLE)
    if "@" in masked.text:
        raise RuntimeError("the rules miss their sample")
    return scrubber


def _serve(requests: int, answers: int, scrubber: Scrubber, alarm_s: float) -> int:
    from agentmesh.blackboard.logic.scrub_rules import Unsettled
    from agentmesh.blackboard.scrub_detectors import scrub_with

    while (request := _read(requests)) is not None:
        if not isinstance(request, frames.Text):
            return 2
        set_alarms(TEXT_CPU_LIMIT_S, alarm_s)
        try:
            masked, mostly = scrub_with(scrubber, request.text)
            answer = frames.Scrubbed(request.number, masked.text, masked.redactions, mostly)
        except Unsettled:
            answer = frames.Scrubbed(request.number, "", (), mostly_secret=False, settled=False)
        set_alarms(0, 0)
        if len(answer.text) > MAX_REPLY_BYTES // 4:
            answer = frames.Scrubbed(request.number, "", (), mostly_secret=False, settled=False)
        _write(answers, answer)
    return 0


def set_alarms(cpu_s: float, wall_s: float) -> None:
    """End this process after so much processor time (a text that is slow to read) or time (the node is gone as well); 0: never."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def _read(descriptor: int) -> frames.Setup | frames.Text | None:
    header = _read_exactly(descriptor, frames.HEADER_BYTES)
    if header is None:
        return None
    body = _read_exactly(descriptor, frames.body_length(header, frames.MAX_REQUEST_BYTES))
    return None if body is None else frames.decode_request(body)


def _read_exactly(descriptor: int, count: int) -> bytes | None:
    """`count` bytes, or None where the pipe closed before."""
    pieces: list[bytes] = []
    while count:
        piece = os.read(descriptor, min(count, 65_536))
        if not piece:
            return None
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _write(descriptor: int, message: frames.Ready | frames.Broken | frames.Scrubbed) -> None:
    rest = memoryview(frames.encode(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


if __name__ == "__main__":
    sys.exit(main())
