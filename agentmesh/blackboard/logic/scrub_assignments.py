"""Secrets that a name announces: assignments, fields, flags and headers in the languages and files that developers paste.

Owns where a value begins and ends and which rule judges it; the names are in secret_names.py, the values' looks in
secret_values.py, commands and prose in scrub_phrases.py. Entropy alone never makes a finding here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from agentmesh.blackboard.logic.redaction import Finding
from agentmesh.blackboard.logic.scrub_limits import MAX_JUDGED_CHARS
from agentmesh.blackboard.logic.secret_names import HINTS, NameClass, classify, words_of
from agentmesh.blackboard.logic.secret_values import (
    class_changes,
    is_call,
    is_code,
    is_path,
    looks_like_password,
    looks_random,
    stands_for_a_secret,
)

ASSIGNMENT_RANK: Final = 40
_MAX_VALUE_CHARS: Final = 4096
_UNJUDGED_CHARS: Final = 64  # how much of a value is masked once the budget is spent


class _Budget:
    """Characters that may still be judged in one text. `token=token=token=…` holds values within values: judging each would be
    quadratic (5 s at 16 KiB). Beyond four times the longest text every value that a name announces is masked unseen."""

    def __init__(self, left: int) -> None:
        self.left = left


# key, what closes its quotes or index, an operator. The key is possessive: each identifier is read once.
_SITE: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?P<key>[A-Za-z_][A-Za-z0-9_.\-]{1,63}+)(?P<close>\\{0,2}[\"'`]?[\])]?)"
    r"[ \t]{0,16}(?P<op>:=|=>|[?|!+]{0,2}={1,3}|::?|,|>)(?![=:])[ \t]{0,16}",
    re.ASCII,
)
_TYPE: Final = re.compile(
    r"&?(?:'static )?[A-Za-z_][A-Za-z0-9_.<>|?\[\]]{0,40}+(?:[ \t]{1,4}=(?!=)[ \t]{0,4}|=(?=[\"']))", re.ASCII
)
_IS: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?P<key>[A-Za-z][A-Za-z0-9_-]{3,63}+)[ \t](?:is|was|->)(?: now)?[ \t]{1,2}(?=\S)", re.ASCII
)
_VARIABLE: Final = re.compile(
    r"\bvariable \"(?P<key>[A-Za-z_][A-Za-z0-9_-]{1,63}+)\"\s{0,4}\{[^}\n]{0,100}\n?[^}\n]{0,100}default\s{0,4}=\s{0,4}",
    re.ASCII,
)
_PAIR: Final = re.compile(
    r"\b(?:name|key)\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?(?P<key>[A-Za-z_][A-Za-z0-9_.\-:]{2,63}+)\\?[\"']?[\s,]{1,40}-?\s{0,4}\\?[\"']?value\\?[\"']?\s{0,4}[:=]\s{0,4}",
    re.IGNORECASE | re.ASCII,
)
_FLAG: Final = re.compile(r"(?<![A-Za-z0-9_-])--?(?P<key>[A-Za-z][A-Za-z0-9_-]{2,40}+)[ \t]{1,4}(?=[^\s-])", re.ASCII)
_SET: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?:ENV|ARG|SetEnv|setx|setenv|set -gx|set -x|set -Ux|LABEL)[ \t]{1,4}(?P<key>[A-Za-z_][A-Za-z0-9_]{2,63}+)[ \t]{1,4}",
    re.ASCII,
)

_OPENING: Final = re.compile(r"(?:@|[rbfuRBFU]{1,2})?(\\{0,2}(?:\"\"\"|'''|[\"'`]))")
_BARE: Final = re.compile(
    r"(?:[^\s\"'`<>,;&\\]|[,;&](?![\s\"'}\])]|$|[A-Za-z_][A-Za-z0-9_ .-]{0,30}=)){1,4096}+", re.ASCII
)
_PHRASE: Final = re.compile(r"[a-z]{3,8}(?:[ ,]{1,2}[a-z]{3,8}){11,23}(?![a-z])")
_TRAILING: Final = ".,;:)]}\"'"
_CASTS: Final = re.compile(
    r"(?:Bearer|Basic|token|Token|bot|Bot|ApiKey|pass:|plain:|raw:|\{noop\}|base64:|0x)[ \t]?", re.ASCII
)


def find_assignments(text: str) -> Iterator[Finding]:
    """Values of fields, variables and flags whose name says that they are secret."""
    lower = text.lower()
    if not any(hint in lower for hint in HINTS):
        return
    budget = _Budget(MAX_JUDGED_CHARS)
    for match in _SITE.finditer(text):
        name_class = classify(match["key"])
        if name_class is not None and not _is_list_of_words(match):
            kind = _TYPE.match(text, match.end()) if match["op"] == ":" else None
            yield from _judged(
                text, match["key"], name_class, kind.end() if kind else match.end(), _operator(text, match), budget
            )
    if "value" in lower:
        yield from _sites(text, _PAIR, budget)
    if "-" in text:
        yield from _sites(text, _FLAG, budget)
    if " is " in text or " was " in text or "->" in text:
        yield from _sites(text, _IS, budget)
    if "variable" in text:
        yield from _sites(text, _VARIABLE, budget)
    yield from _sites(text, _SET, budget)


def _sites(text: str, pattern: re.Pattern[str], budget: _Budget) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        name_class = classify(match["key"].rpartition(":")[2])
        if name_class is not None:
            yield from _judged(text, match["key"], name_class, match.end(), "=", budget)


def _is_list_of_words(match: re.Match[str]) -> bool:
    """`token, x` never says anything; `"token", "x"` is a call's arguments when quoted."""
    return match["op"] == "," and not match["close"].strip("])")


def _operator(text: str, match: re.Match[str]) -> str:
    """The operator; `(` where a call's first argument is the name: `setenv("NAME", "value")`, not `["password", "scram-sha-256"]`."""
    return "(" if match["op"] == "," and text[max(0, match.start() - 2) : match.start()][:1] == "(" else match["op"]


def _judged(
    text: str, key: str, name_class: NameClass, position: int, operator: str, budget: _Budget
) -> Iterator[Finding]:
    if name_class is NameClass.PHRASE:
        opening = _OPENING.match(text, position)
        phrase = _PHRASE.match(text, opening.end() if opening else position)
        if phrase is not None:
            yield Finding("SEED_PHRASE", *phrase.span(), ASSIGNMENT_RANK)
        return
    span = read_value(text, position, _MAX_VALUE_CHARS if budget.left > 0 else _UNJUDGED_CHARS)
    if span is None:
        return
    start, end, quoted = span
    if operator in {",", "("} and not (quoted and (operator == "(" or looks_random(text[start:end]))):
        return
    budget.left -= end - start
    if budget.left < 0:
        yield Finding(kind_of(key, name_class), start, end, ASSIGNMENT_RANK)
        return
    cast = _CASTS.match(text, start, end)
    if cast is not None and end - cast.end() >= 6:
        start = cast.end()
    if is_secret_value(text[start:end], key, name_class, quoted=quoted):
        yield Finding(kind_of(key, name_class), start, end, ASSIGNMENT_RANK)


def read_value(text: str, position: int, limit: int = _MAX_VALUE_CHARS) -> tuple[int, int, bool] | None:
    """Where the value that begins at `position` starts and ends, and whether it was quoted; None: there is none."""
    opening = _OPENING.match(text, position)
    if opening is None:
        bare = _BARE.match(text, position, position + limit)
        if bare is None:
            return None
        end = bare.end()
        while end > position and text[end - 1] in _TRAILING:
            end -= 1
        return (position, end, False) if end > position else None
    quote, start = opening[1], opening.end()
    stop = min(len(text), start + limit)
    line_end = text.find("\n", start, stop)
    if line_end >= 0 and len(quote) < 3:
        stop = line_end
    end = text.find(quote, start, stop)
    while end > start and text[end - 1] == "\\" and len(quote) == 1:
        end = text.find(quote, end + 1, stop)
    if end < 0:  # a paste that was cut off in the middle of the value
        bare = _BARE.match(text, start, stop)
        return (start, bare.end(), True) if bare is not None else None
    return (start, end, True) if end > start else None


def is_secret_value(value: str, key: str, name_class: NameClass, *, quoted: bool) -> bool:
    """Whether this value under this name is a secret, rather than code, a setting or a stand-in for one."""
    if len(value) < 6 or stands_for_a_secret(value) or value.startswith(("{{", "os.environ", "process.env")):
        return False
    if not quoted and (is_call(value) or (is_code(value) and class_changes(value) < max(4, len(value) // 5))):
        return False
    if looks_random(value):
        return not is_path(value)
    if name_class is NameClass.PASSWORD:
        return looks_like_password(value) or (not quoted and key.isupper() and _is_plain_password(value))
    return words_of(key)[-1] in {"secret", "token", "key"} and _is_chosen_secret(value)


def kind_of(key: str, name_class: NameClass) -> str:
    """The placeholder for a value: what the name says, in a few fixed words."""
    if name_class is not NameClass.TOKEN:
        return name_class.value
    last = words_of(key)[-1]
    if last.endswith("key"):
        return "API_KEY"
    return "TOKEN" if last.endswith(("token", "pat")) else "SECRET"


def _is_plain_password(value: str) -> bool:
    """`DB_PASSWORD=correcthorse`: in an environment file any longer word will do."""
    return len(value) >= 8 and value.isascii() and value.isalpha() and not value.isupper()


def _is_chosen_secret(value: str) -> bool:
    """`JWT_SECRET=correct4horse!`: shorter or wordier than a machine makes them."""
    if not looks_like_password(value) or len(value) < 8 or ":" in value:
        return False
    return any(c in "!@#$%^&*" for c in value) or (class_changes(value) >= 2 and any(c.isdigit() for c in value))
