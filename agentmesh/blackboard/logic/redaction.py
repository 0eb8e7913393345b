"""Findings in a text, how overlapping ones are settled, and how they are masked.

Owns the shapes `Finding`, `Redaction`, `Masked` and the placeholders; knows no rule that finds anything. Imports nothing
heavy: the thin clients use it. Offsets are in characters, as in Python's `str`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

HOME_KIND: Final = "HOME"
PEOPLE_KINDS: Final = frozenset({"EMAIL", "PHONE", "CARD", "SSN", "IBAN", "IP_ADDRESS", "MAC_ADDRESS"})
MACHINE_KINDS: Final = frozenset({HOME_KIND, "USER", "HOST"})
CERTAIN_RANK: Final = 20  # formats that nothing else has: key blocks, provider prefixes, JWTs
MAX_OFFSET: Final = 1 << 62
PLACEHOLDER: Final = re.compile(r"\{\{([A-Z][A-Z0-9_]{0,63})\}\}")

_NOT_IN_A_KIND: Final = re.compile(r"[^A-Z0-9]+")


class Finding(NamedTuple):
    """`text[start:end]` is a `kind`. Of two that overlap, the one of lower `rank` names the whole."""

    kind: str
    start: int
    end: int
    rank: int = 50


class Redaction(msgspec.Struct, frozen=True):
    """How many things of one kind were masked."""

    kind: str
    count: int


class Masked(msgspec.Struct, frozen=True):
    """A text after masking, and what was masked."""

    text: str
    redactions: tuple[Redaction, ...]


def kind_name(name: str) -> str:
    """A placeholder's kind out of any name, such as that of an environment variable."""
    cleaned = _NOT_IN_A_KIND.sub("_", name.upper()).strip("_")[:64].rstrip("_")
    if not cleaned:
        return "SECRET"
    return cleaned if cleaned[0].isalpha() else f"ENV_{cleaned}"[:64]


def replacement(kind: str) -> str:
    """What stands for a finding in the masked text: `~` for a home directory, else `{{KIND}}`."""
    return "~" if kind == HOME_KIND else "{{" + kind + "}}"


def resolve(findings: Iterable[Finding], text: str) -> list[Finding]:
    """Findings in order, none overlapping: overlapping ones become one that covers them all, named by the lowest rank.

    A finding inside a placeholder that is already there is dropped, so that masked text stays as it is.
    """
    ordered = sorted(findings, key=lambda f: (f.start, -f.end, f.rank, f.kind))
    if not ordered:
        return []
    placeholders = [m.span() for m in PLACEHOLDER.finditer(text)] if "{{" in text else []
    merged: list[Finding] = []
    for finding in ordered:
        if _inside(finding, placeholders):
            continue
        if merged and finding.start < merged[-1].end:
            merged[-1] = _union(merged[-1], finding)
        else:
            merged.append(finding)
    return merged


def mask(text: str, findings: Sequence[Finding]) -> Masked:
    """The text with each finding replaced; `findings` as `resolve` returns them."""
    pieces: list[str] = []
    counts: dict[str, int] = {}
    position = 0
    for finding in findings:
        pieces += (text[position : finding.start], replacement(finding.kind))
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
        position = finding.end
    pieces.append(text[position:])
    return Masked("".join(pieces), redactions_of(counts))


def redactions_of(counts: dict[str, int]) -> tuple[Redaction, ...]:
    """Counts in the order of their kinds."""
    return tuple(Redaction(kind, counts[kind]) for kind in sorted(counts))


def add_redactions(*parts: Sequence[Redaction]) -> tuple[Redaction, ...]:
    """The counts of several rounds as one."""
    counts: dict[str, int] = {}
    for part in parts:
        for item in part:
            counts[item.kind] = counts.get(item.kind, 0) + item.count
    return redactions_of(counts)


def _union(first: Finding, second: Finding) -> Finding:
    named = first if first.rank <= second.rank else second
    return Finding(named.kind, first.start, max(first.end, second.end), named.rank)


def _inside(finding: Finding, placeholders: Sequence[tuple[int, int]]) -> bool:
    """Whether a placeholder holds it. A format of its own (`CERTAIN_RANK`) is no placeholder's name: braces hide nothing."""
    if finding.rank <= CERTAIN_RANK:
        return False
    index = bisect_right(placeholders, (finding.start, MAX_OFFSET)) - 1
    return index >= 0 and finding.end <= placeholders[index][1]
