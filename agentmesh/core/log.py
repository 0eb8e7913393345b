"""Logging: one format on stderr or in a file of bounded size, with secrets struck out.

Owns handlers and redaction. Modules log through `logging.getLogger(__name__)`; none writes a secret on purpose, and what
slips in through an error's text or a library's message is struck out here.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys
from pathlib import Path
from typing import Final

from agentmesh.core.errors import InvalidInput

LOG_FILE_BYTES: Final = 2 * 1024 * 1024  # days of a busy node at level info
LOG_FILES_KEPT: Final = 3
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

_SECRETS: Final = (
    (re.compile(r"amesh1\.[A-Za-z0-9_.=-]+"), "amesh1.…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 …"),
    (re.compile(r"(?i)([?&]token=)[^\s&\"']+"), r"\1…"),
)
# Libraries that say at "info" what only their authors want to know.
_CHATTY: Final = ("quic", "uvicorn", "asyncio", "mcp", "httpx", "httpcore")


def redact(text: str) -> str:
    """`text` without invite tokens and bearer tokens."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Strikes out secrets in the finished line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class OwnOutputFile(logging.handlers.RotatingFileHandler):
    """A log file that is also the process's stdout and stderr, so that even a crash of the interpreter is in it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES_KEPT, encoding="utf-8")
        self._take_output()

    def doRollover(self) -> None:
        super().doRollover()
        self._take_output()

    def _take_output(self) -> None:
        stream = self.stream or self._open()
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


def level_from_environment(default: str = "warning") -> str:
    """`$AGENTMESH_LOG`. Raises: InvalidInput: it names no level."""
    level = os.environ.get("AGENTMESH_LOG", "").strip().lower() or default
    if level not in LEVELS:
        raise InvalidInput(f"AGENTMESH_LOG is '{level}'; it may be debug, info or warning.")
    return level


def setup_logging(level: str, file: Path | None = None) -> None:
    """Send this process's log to `file`, else to stderr. Replaces what an earlier call set up."""
    handler: logging.Handler = OwnOutputFile(file) if file is not None else logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    # A log that cannot be written (disk full) must not end what the node does.
    logging.raiseExceptions = False
