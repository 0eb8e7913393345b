"""Which of a list of names is meant by what somebody typed, and what to offer when none is.

Owns the comparison of names; knows no catalog.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Final

MAX_SUGGESTIONS: Final = 3
_TELLING_CHARS: Final = 5  # a shorter piece from the middle of a name is no name
_PIECE_CHARS: Final = 3  # of a shorter one, finding it somewhere in a name says nothing
_SIMILAR: Final = 0.6  # difflib's own default; a typo or two in a model's name


def plain(name: str) -> str:
    """A name as it is compared: lower case, letters and digits only."""
    return "".join(c for c in name.lower() if c.isalnum())


def _words(name: str) -> frozenset[str]:
    """The pieces of a name, numbers with their unit or point: `Qwen2.5-7B` -> qwen, 2.5, 7b."""
    return frozenset(re.findall(r"[a-z]+(?=[0-9.]|\b|_|-)|[0-9]+(?:\.[0-9]+)*[a-z]?|[a-z]+", name.lower()))


def find(wanted: str, names: Mapping[str, Sequence[str]]) -> tuple[list[str], bool]:
    """(keys, sure) for `wanted` among keys with their other names.

    Sure with one key: that is meant. Not sure: what may have been meant, best first, perhaps nothing.
    """
    target = plain(wanted)
    if target:
        exact = [key for key, others in names.items() if target in map(plain, (key, *others))]
        if len(exact) == 1:
            return exact, True
        beginning = [key for key, others in names.items() if any(plain(n).startswith(target) for n in (key, *others))]
        if len(beginning) == 1:
            return beginning, True
        words = _words(wanted)
        having = [key for key, others in names.items() if any(words <= _words(name) for name in (key, *others))]
        if len(having) == 1:
            return having, True
        if having:
            return having, False
        starting = [k for k, others in names.items() if any(target in plain(name) for name in (k, *others))]
        if starting and len(target) >= _PIECE_CHARS:
            return starting, len(starting) == 1 and len(target) >= _TELLING_CHARS
    by_plain = {plain(name): key for key, others in names.items() for name in (*others, key)}
    close = difflib.get_close_matches(target, list(by_plain), n=2 * MAX_SUGGESTIONS, cutoff=_SIMILAR)
    return list(dict.fromkeys(by_plain[name] for name in close))[:MAX_SUGGESTIONS], False
