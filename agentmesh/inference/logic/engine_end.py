"""Why an engine ended, in sentences: from how its process ended and from the last lines of its log.

Owns what llama.cpp's words mean for a user. The words are those of builds b1-0c1e570 and some years before; what matches none of them
is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHOWN_LINES: Final = 8  # of the log, in a message

_NO_MEMORY: Final = re.compile(
    r"failed to allocate|out of memory|unable to allocate|cannot allocate memory|std::bad_alloc|OutOfDeviceMemory"
    r"|insufficient memory|failed to fit|not enough memory",
    re.IGNORECASE,
)
_UNKNOWN_ARCHITECTURE: Final = re.compile(r"unknown model architecture: '([^']{1,64})'")
_NOT_A_MODEL: Final = re.compile(
    r"failed to open GGUF file|invalid magic|failed to read magic|is not a model|tensor '.*' data is not within the file"
)
_BAD_OPTION: Final = re.compile(r"error: (?:invalid argument|unknown argument): (\S{1,64})")
_BAD_VALUE: Final = re.compile(r"error while handling argument \"([^\"]{1,64})\"")
_NO_ADDRESS: Final = re.compile(r"couldn't bind|bind failed|Address already in use")
_NO_LIBRARY: Final = re.compile(r"error while loading shared libraries: (\S{1,200})|Library not loaded: (\S{1,200})")
_NO_CONTEXT: Final = re.compile(r"failed to create context|failed to initialize the context")

_MEMORY_ADVICE: Final = "Use a smaller context, fewer slots or a smaller quantisation, or unload another model."


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended: `code` is its exit status, or None when `signal` ended it; both None when nobody knows."""

    code: int | None
    signal: int | None
    asked: bool = False  # we had sent it a signal


def explain_end(end: ProcessEnd, lines: Sequence[str]) -> str:
    """One or two sentences on why it ended."""
    text = "\n".join(lines)
    return _from_log(text) or _from_end(end)


def end_message(end: ProcessEnd, lines: Sequence[str], log: str) -> str:
    """What a user reads: the explanation, and the last lines of the log, which is at `log`."""
    explained = explain_end(end, lines)
    if not lines:
        return f"{explained} Its log, {log}, is empty."
    return "\n".join([f"{explained} Its log, {log}, ends with:", *lines[-SHOWN_LINES:]])


def without_log(message: str) -> str:
    """What end_message says, as others may read it: why, without lines and place of the log."""
    return message.split("\n", 1)[0].split(" Its log, ", 1)[0]


def _from_log(text: str) -> str:
    if found := _BAD_OPTION.search(text):
        return f"The engine does not know the option {found[1]}."
    if found := _BAD_VALUE.search(text):
        return f"The engine does not accept the value of the option {found[1]}."
    if found := _NO_LIBRARY.search(text):
        name = (found[1] or found[2]).rstrip(":")
        return f"The engine misses the library {name}. Build one for this machine with: agentmesh engine install"
    if found := _UNKNOWN_ARCHITECTURE.search(text):
        return (
            f"This build of the engine does not know the model's architecture, {found[1]}. "
            "A newer engine may: agentmesh engine install"
        )
    if _NO_MEMORY.search(text):
        return f"There was not enough memory for the model and its context. {_MEMORY_ADVICE}"
    if _NO_ADDRESS.search(text):
        return "The engine could not listen on its socket or port."
    if _NOT_A_MODEL.search(text):
        return "The model's file is missing, damaged, or no GGUF file."
    if _NO_CONTEXT.search(text):
        return f"The engine could not set up the model's context. {_MEMORY_ADVICE}"
    return ""


def _from_end(end: ProcessEnd) -> str:
    if end.signal == 9 and not end.asked:
        return f"The system ended the engine with SIGKILL, most likely because the machine ran out of memory. {_MEMORY_ADVICE}"
    if end.signal == 4:
        return "The engine was built for another processor (illegal instruction). Build one here with: agentmesh engine install"
    if end.signal in (6, 7, 8, 11):
        return f"The engine crashed (signal {end.signal})."
    if end.signal is not None:
        return f"The engine was ended by signal {end.signal}."
    if end.code is not None:
        return f"The engine ended with status {end.code}."
    return "The engine's guard process ended, and the engine with it."
