"""Where the model API's keys come from: a file (`@FILE`) or `$AGENTMESH_API_KEY`. Never the command line itself.

Knows how keys are handed over; who checks them is the proxy's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agentmesh.core.errors import InvalidInput

KEY_VARIABLE: Final = "AGENTMESH_API_KEY"
MAX_KEY_FILE_BYTES: Final = 64 * 1024
MIN_KEY_CHARS: Final = 16  # what others on the network could otherwise guess


def api_keys(given: str | None, environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The keys, none if the user named none. A file holds one key a line; `#` begins a comment.

    Raises:
        InvalidInput: the option is not a file, the file cannot be read, or a key is too short or has odd characters.
    """
    if given is None:
        words, where = environ.get(KEY_VARIABLE, "").split(), f"${KEY_VARIABLE}"
    elif given.startswith("@"):
        where = given[1:]
        words = _read(Path(where))
    else:
        raise InvalidInput(
            "Other users of this machine can read the command line: put the key into a file and give --api-key @FILE,"
            f" or set {KEY_VARIABLE}."
        )
    for word in words:
        if len(word) < MIN_KEY_CHARS or not (word.isascii() and word.isprintable()):
            raise InvalidInput(f"A key in {where} is not usable: at least {MIN_KEY_CHARS} printable ASCII characters.")
    return frozenset(words)


def _read(path: Path) -> list[str]:
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(MAX_KEY_FILE_BYTES).decode("utf-8", "replace")
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"The key file {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    words = [word for line in text.splitlines() if (word := line.partition("#")[0].strip())]
    if not words:
        raise InvalidInput(f"There is no key in {path}.")
    return words
