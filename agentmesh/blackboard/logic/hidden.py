"""Characters that no eye sees and that would hide a secret from the scrubber, or a word from the reader.

Owns which they are. Between two printable ASCII characters nobody needs one, while `ghp_` with a zero-width space in its
middle is a whole token again for whoever copies it; beside other scripts and emoji they have their uses and stay.
"""

from __future__ import annotations

import re
from typing import Final

# Soft hyphen, joiners, marks of direction, fillers, variation selectors, tags (Unicode 15.1: Default_Ignorable_Code_Point).
IGNORABLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Those that emoji and scripts are joined with; the others say nothing to any reader, though a model may read them.
_JOINING: Final = frozenset("\u200c\u200d\ufe0e\ufe0f")
_ANY: Final = re.compile(f"[{IGNORABLE}]")
_PLAIN_NAME: Final = re.compile(r"[\w .+'&-]+")
_HIDING: Final = re.compile(f"(?<=[!-~])[{IGNORABLE}]+(?=[!-~])")


def without_hidden(text: str) -> str:
    """The text without the invisible characters that split what is written in ASCII."""
    return text if text.isascii() else _HIDING.sub("", text)


def readable(text: str) -> str:
    """The text without invisible characters, but for those that join emoji and letters."""
    return text if text.isascii() else _ANY.sub(lambda match: match[0] if match[0] in _JOINING else "", text)


def shows_something(text: str) -> bool:
    """Whether a reader sees anything of it."""
    return any(c.isprintable() and not c.isspace() for c in readable(text))


def name_in_heading(name: str) -> str:
    """A name as a heading shows it: in quotes when it could be read as the heading's next part (a node, an age)."""
    name = " ".join(readable(name).split())
    return name if _PLAIN_NAME.fullmatch(name) else '"' + name.replace('"', "'") + '"'
