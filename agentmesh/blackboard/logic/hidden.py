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
_HIDING: Final = re.compile(f"(?<=[!-~])[{IGNORABLE}]+(?=[!-~])")


def without_hidden(text: str) -> str:
    """The text without the invisible characters that split what is written in ASCII."""
    return text if text.isascii() else _HIDING.sub("", text)
