"""Which values look like a secret, once a name has said that one is there: stop-list, randomness, code that only names one.

Owns the judgement of values; entropy alone never makes a secret here. Light: the thin clients use it on their environment.
"""

from __future__ import annotations

import math
import re
from typing import Final

# Texts that stand for a secret in documentation and templates.
_STANDS_FOR: Final = re.compile(
    r"your|example|change[-_]?me|replace|insert|placeholder|redacted|dummy|sample|xxxx|\*\*\*|\.\.\.|…|\$\{|\$\(|\{\{|^%s$|%\(|<[^>]*>|todo|fixme|"
    r"not[-_ ]?set|not[-_ ]?a[-_ ]|goes[-_]?here|_here$|put[-_]|my[-_]?(?:secret|password|token|api|key)|(?<![a-z0-9])foo(?:bar)?(?![a-z0-9])|lorem|"
    r"n/?a$|none$|null|undefined|secret[-_]?(?:key|token|name|value)?$|pass(?:word|wd)?$|token$|string$|^12345678|abcdefgh|deadbeef|0000000",
    re.IGNORECASE | re.ASCII,
)
# Code that fetches or names a secret: a call, an index, an attribute, a variable.
_CODE: Final = re.compile(
    r"[$%@&*]?(?:[A-Za-z_][A-Za-z0-9_]*(?:\.|->|::|\?\.))+[A-Za-z_][A-Za-z0-9_]*!?|\$[A-Za-z_{(].*|%[A-Za-z_]+%|[A-Za-z_.]*[(\[{].*|[A-Z][A-Z_]*[A-Z_]|[a-z_]+(?:_[a-z]+)+[0-9]?",
    re.ASCII | re.DOTALL,
)
_CALL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*[(\[]", re.ASCII)
_WORDY: Final = re.compile(r"[A-Za-z]{2,}(?:[-_./: ][A-Za-z]{1,})*[0-9]{0,3}", re.ASCII)
_PATH: Final = re.compile(
    r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\][\w.@+-]*(?:[/\\][\w.@+ -]*)*|[\w-]+(?:/[\w.-]+)+\.\w{1,5}", re.ASCII
)
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII)
_SECRET_CHARS: Final = re.compile(r"[A-Za-z0-9_\-+/=.~:!@#$%^&*|?,;]+", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_HEX: Final = re.compile(r"(?:0x)?[0-9a-f]{16,}", re.IGNORECASE | re.ASCII)
_VERSION: Final = re.compile(
    r"v?\d+(?:\.\d+)+[\w.+-]*|\d{4}-\d\d-\d\d.*|\d+(?:\.\d+)?(?:[smhd]|ms|px|%|[kKMGT]i?B?)?", re.ASCII
)
_DIGEST: Final = re.compile(r"(?:sha\d{1,3}|md5|blake\w+|sri)[-:=].*", re.IGNORECASE | re.ASCII | re.DOTALL)
_SIGNS: Final = frozenset("!@#$%^&*+?~|=;")

_MIN_RANDOM_CHARS: Final = 10
_MIN_ENTROPY_BITS: Final = 2.5


def stands_for_a_secret(value: str) -> bool:
    """Whether a value only holds the place of one: `YOUR_KEY_HERE`, `<token>`, `${TOKEN}`, `****`, `changeme`."""
    return _STANDS_FOR.search(value) is not None or len(set(value)) < 4


def is_code(value: str) -> bool:
    """Whether an unquoted value is an expression that names or fetches something, not the thing itself."""
    return _CODE.fullmatch(value) is not None


def is_call(value: str) -> bool:
    """Whether an unquoted value calls or indexes something: `base64.b64encode(x`, `secrets[0]`."""
    return _CALL.match(value) is not None


def class_changes(value: str) -> int:
    """How often letters, digits and a capital within a word alternate: random text does it all the time, words do not."""
    changes = 0
    previous = ""
    for char in value:
        kind = "d" if char.isdigit() else "u" if char.isupper() else "l" if char.islower() else "-"
        if previous and kind != previous and "-" not in (kind, previous) and (previous, kind) != ("u", "l"):
            changes += 1
        previous = kind
    return changes


def entropy_bits(value: str) -> float:
    """Shannon entropy in bits a character."""
    counts: dict[str, int] = {}
    for char in value:
        counts[char] = counts.get(char, 0) + 1
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def looks_random(value: str) -> bool:
    """Whether a machine made it: long enough, mixed, no words, no path, no version, no digest with its label."""
    if len(value) < _MIN_RANDOM_CHARS or _SECRET_CHARS.fullmatch(value) is None:
        return False
    if _UUID.fullmatch(value) or _HEX.fullmatch(value):
        return entropy_bits(value) > _MIN_ENTROPY_BITS
    if _VERSION.fullmatch(value) or _DIGEST.fullmatch(value) or entropy_bits(value) < _MIN_ENTROPY_BITS:
        return False
    return class_changes(value) >= max(3, len(value) // 8)


def looks_like_password(value: str) -> bool:
    """Whether a person chose it: one word of letters with a digit or a sign, or long and mixed."""
    if not 6 <= len(value) <= 256 or any(c.isspace() for c in value) or is_path(value) or _URL.match(value):
        return False
    letters = any(c.isalpha() for c in value)
    digits = any(c.isdigit() for c in value)
    signs = any(c in _SIGNS for c in value)
    if not letters:
        return digits and len(value) >= 8 and _VERSION.fullmatch(value) is None
    return digits or signs


def is_path(value: str) -> bool:
    """Whether it reads as a file's path: nothing random between the slashes."""
    return _PATH.fullmatch(value) is not None and class_changes(value) < max(4, len(value) // 6)


def is_trivial(value: str) -> bool:
    """Whether an environment value, though its name says secret, is a setting: masking it would damage ordinary text."""
    if looks_random(value):
        return False
    if _URL.match(value):
        return True
    return (
        is_path(value)
        or _VERSION.fullmatch(value) is not None
        or _WORDY.fullmatch(value) is not None
        or stands_for_a_secret(value)
    )
