"""Where join tokens come from: the command line, a file (`@FILE`), stdin (`-`), `$AGENTMESH_JOIN`.

Knows how a token is handed over, not what is in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentmesh.core.errors import TokenError

JOIN_VARIABLE: Final = "AGENTMESH_JOIN"
MAX_TOKEN_FILE_BYTES: Final = 256 * 1024  # a token is at most 16 KiB; a file may hold several


def join_tokens(given: Sequence[str]) -> tuple[str, ...]:
    """The tokens of `--join` values, else of `$AGENTMESH_JOIN` (which may hold several, apart by spaces).

    Raises:
        TokenError: a file cannot be read or holds no token.
    """
    if not given:
        words = os.environ.get(JOIN_VARIABLE, "").split()
        return tuple(token for word in words for token in _resolve(word, stdin=False))
    return tuple(token for source in given for token in _resolve(source, stdin=True))


def _resolve(source: str, *, stdin: bool) -> tuple[str, ...]:
    if source == "-" and stdin:
        return _words(sys.stdin.buffer.read(MAX_TOKEN_FILE_BYTES), "stdin")
    if source.startswith("@"):
        path = Path(source[1:])
        try:
            path = path.expanduser()
            with path.open("rb") as file:
                return _words(file.read(MAX_TOKEN_FILE_BYTES), str(path))
        except (OSError, RuntimeError, ValueError) as error:  # also an unknown ~user, a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise TokenError(f"The token file {path} cannot be read: {reason}.") from error
    return (source.strip(),)


def _words(data: bytes, where: str) -> tuple[str, ...]:
    words = tuple(data.decode("utf-8", "replace").split())
    if not words:
        raise TokenError(f"There is no invite token in {where}.")
    return words
