"""The rules as scrubadub sees them: one Detector for each family, Filth that carries our kind, a PostProcessor that settles.

Heavy: importing scrubadub takes 2-3 s and some 150 MB, so only the worker and the benchmark import this module.
scrubadub's own detectors are left out: they miss nearly every credential and damage developers' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cache
from typing import Any

from scrubadub import Scrubber
from scrubadub.detectors import Detector
from scrubadub.filth import Filth, MergedFilth
from scrubadub.post_processors import PostProcessor

from agentmesh.blackboard.logic.redaction import Finding, Masked, Redaction, add_redactions, mask, replacement, resolve
from agentmesh.blackboard.logic.scrub_limits import MAX_ROUNDS
from agentmesh.blackboard.logic.scrub_machine import ScrubContext, find_machine
from agentmesh.blackboard.logic.scrub_people import find_people
from agentmesh.blackboard.logic.scrub_rules import Unsettled, find_secrets, mostly_secret

Rule = Callable[[str], Iterable[Finding]]


class RuleFilth(Filth):
    """One finding. Its class carries the kind in lower case as `type`, by which scrubadub names and compares filth."""

    finding: Finding


@cache
def _filth_class(kind: str) -> type[RuleFilth]:
    return type(f"{kind.title().replace('_', '')}Filth", (RuleFilth,), {"type": kind.lower()})


def _filth(finding: Finding, text: str, detector_name: str, document_name: str | None) -> RuleFilth:
    filth = _filth_class(finding.kind)(
        beg=finding.start,
        end=finding.end,
        text=text[finding.start : finding.end],
        detector_name=detector_name,
        document_name=document_name,
        locale="en_US",
    )
    filth.finding = finding
    return filth


class RuleDetector(Detector):
    """A family of pure rules."""

    filth_cls = RuleFilth
    name = "rules"

    def __init__(self, name: str, rule: Rule) -> None:
        super().__init__(name=name)
        self._rule = rule

    def iter_filth(self, text: str, document_name: str | None = None) -> Generator[Filth, None, None]:
        """Each finding of the family, settled among themselves."""
        for finding in resolve(self._rule(text), text):
            yield _filth(finding, text, self.name, document_name)


class Settle(PostProcessor):
    """Gives each stretch of filth its placeholder: where families overlap, the most certain one names the whole."""

    name = "settle"

    def process_filth(self, filth_list: Sequence[Filth]) -> Sequence[Filth]:
        """Set `replacement_string` on every filth."""
        for filth in filth_list:
            filth.replacement_string = replacement(finding_of(filth).kind)
        return filth_list


def finding_of(filth: Filth) -> Finding:
    """The finding behind a filth, merged or not."""
    parts: Sequence[Filth] = filth.filths if isinstance(filth, MergedFilth) else [filth]
    named = min(
        (part.finding for part in parts if isinstance(part, RuleFilth)), key=lambda f: (f.rank, f.start, f.kind)
    )
    return named._replace(start=filth.beg, end=filth.end)


def build_scrubber(context: ScrubContext) -> Scrubber:
    """scrubadub with our detectors and nothing else."""
    detectors: list[Any] = [
        RuleDetector("secrets", find_secrets),
        RuleDetector("people", find_people),
        RuleDetector("machine", lambda text: find_machine(text, context)),
    ]
    return Scrubber(detector_list=detectors, post_processor_list=[Settle()])


def find_with(scrubber: Scrubber, text: str) -> list[Finding]:
    """What the framework finds, in order, none overlapping."""
    return [finding_of(filth) for filth in scrubber.iter_filth(text)]


def scrub_with(scrubber: Scrubber, text: str) -> tuple[Masked, bool]:
    """The text masked until nothing more is found, and whether it was mostly secret.

    Raises:
        Unsettled: masking does not come to an end.
    """
    redactions: tuple[Redaction, ...] = ()
    findings = find_with(scrubber, text)
    mostly = mostly_secret(text, findings)
    for _ in range(MAX_ROUNDS):
        if not findings:
            return Masked(text, redactions), mostly
        masked = mask(text, findings)
        text, redactions = masked.text, add_redactions(redactions, masked.redactions)
        findings = find_with(scrubber, text)
    raise Unsettled
