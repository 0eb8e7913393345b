"""The scrubber's rules as one: find what must not be posted, mask it, and say when a post is mostly secret.

Owns how the families of rules (scrub_providers, scrub_credentials, scrub_assignments, scrub_phrases, scrub_people,
scrub_machine) work together. Pure; scrub_worker.py runs it inside scrubadub in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from agentmesh.blackboard.logic.redaction import (
    MACHINE_KINDS,
    PEOPLE_KINDS,
    PLACEHOLDER,
    Finding,
    Masked,
    Redaction,
    add_redactions,
    mask,
    replacement,
    resolve,
)
from agentmesh.blackboard.logic.scrub_assignments import find_assignments
from agentmesh.blackboard.logic.scrub_credentials import find_credentials
from agentmesh.blackboard.logic.scrub_limits import (
    LONGEST_SECRET_COUNTED_CHARS,
    MAX_ROUNDS,
    MOSTLY_SECRET_DENOMINATOR,
    MOSTLY_SECRET_NUMERATOR,
    SHORTEST_SECRET_COUNTED_CHARS,
)
from agentmesh.blackboard.logic.scrub_machine import ScrubContext, find_machine
from agentmesh.blackboard.logic.scrub_people import find_people
from agentmesh.blackboard.logic.scrub_phrases import find_phrases
from agentmesh.blackboard.logic.scrub_providers import find_provider_tokens

__all__ = [
    "NOTHING_KNOWN",
    "Finding",
    "Masked",
    "Redaction",
    "ScrubContext",
    "Unsettled",
    "find",
    "find_secrets",
    "mask",
    "mostly_secret",
    "replacement",
    "resolve",
    "scrub",
]

NOTHING_KNOWN: Final = ScrubContext()


class Unsettled(Exception):
    """Masking this text does not come to an end; it cannot be posted."""


def find_secrets(text: str) -> Iterator[Finding]:
    """Credentials of every kind, unresolved."""
    if "\\" in text:  # a string of JSON or code: the n of its `\\n` is no letter of the word that follows
        text = text.replace("\\n", "  ").replace("\\r", "  ").replace("\\t", "  ")
    yield from find_provider_tokens(text)
    yield from find_credentials(text)
    yield from find_assignments(text)
    yield from find_phrases(text)


def find(text: str, context: ScrubContext = NOTHING_KNOWN) -> list[Finding]:
    """Everything in the text that must be masked, in order, none overlapping."""
    return resolve((*find_secrets(text), *find_people(text), *find_machine(text, context)), text)


def scrub(text: str, context: ScrubContext = NOTHING_KNOWN) -> Masked:
    """The text masked until nothing more is found, so that scrubbing the result changes nothing.

    Raises:
        Unsettled: that takes more than `MAX_ROUNDS` rounds.
    """
    redactions: tuple[Redaction, ...] = ()
    for _ in range(MAX_ROUNDS):
        findings = find(text, context)
        if not findings:
            return Masked(text, redactions)
        masked = mask(text, findings)
        text, redactions = masked.text, add_redactions(redactions, masked.redactions)
    raise Unsettled


def mostly_secret(text: str, findings: Sequence[Finding]) -> bool:
    """Whether what a post says, blanks aside, is for two thirds or more credentials.

    One secret counts for at most 64 characters, so that a long key does not outweigh the sentence about it; personal data and
    names of the machine do not count; a placeholder that a thin client has already put there counts as a short secret.
    """
    secret = 0
    for finding in findings:
        blackened = len("".join(text[finding.start : finding.end].split()))
        if finding.kind not in PEOPLE_KINDS and finding.kind not in MACHINE_KINDS:
            secret += max(SHORTEST_SECRET_COUNTED_CHARS, min(LONGEST_SECRET_COUNTED_CHARS, blackened))
    outside = mask(text, findings).text if findings else text
    for match in PLACEHOLDER.finditer(text):
        if match[1] not in PEOPLE_KINDS and match[1] not in MACHINE_KINDS and not _covered(match.start(), findings):
            secret += SHORTEST_SECRET_COUNTED_CHARS
    rest = len("".join(PLACEHOLDER.sub("", outside).split()))
    return secret > 0 and secret * MOSTLY_SECRET_DENOMINATOR >= MOSTLY_SECRET_NUMERATOR * (secret + rest)


def _covered(position: int, findings: Sequence[Finding]) -> bool:
    return any(finding.start <= position < finding.end for finding in findings)
