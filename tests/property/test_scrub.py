"""What holds for the scrubber whatever the text."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmesh.blackboard.logic.redaction import PLACEHOLDER, mask
from agentmesh.blackboard.logic.scrub_env import SecretValue, mask_environment, secret_values
from agentmesh.blackboard.logic.scrub_rules import ScrubContext, find, mostly_secret, scrub
from benchmarks.corpus.generate import credentials, people
from benchmarks.corpus.hostile import PIECES

CONTEXT = ScrubContext(
    homes=("/home/quentin", "/root"),
    users=("quentin",),
    hosts=("quentins-box",),
    secrets=(SecretValue("SHOP_KEY", "correct-horse-9"),),
)
_RNG = random.Random(77)
_SAMPLES = [s.text for s in (*credentials(_RNG, 1), *people(_RNG, 3))]
PARTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(_SAMPLES),
    st.sampled_from(PIECES),
    st.sampled_from(
        [
            "{{",
            "}}",
            "{{EMAIL}}",
            "~",
            "/home/quentin",
            "quentin",
            "correct-horse-9",
            "[quentin/",
            "password=",
            "=",
            '"',
            "://",
        ]
    ),
    st.from_regex(r"[a-z]{1,8}[=:@][A-Za-z0-9+/=_.-]{1,30}", fullmatch=True),
)
TEXTS = st.lists(PARTS, max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_scrubbing_scrubbed_text_changes_nothing(text: str) -> None:
    once = scrub(text, CONTEXT)
    again = scrub(once.text, CONTEXT)
    assert again.text == once.text
    assert again.redactions == ()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_findings_are_in_order_apart_and_within_the_text(text: str) -> None:
    findings = find(text, CONTEXT)
    position = 0
    for finding in findings:
        assert position <= finding.start < finding.end <= len(text)
        position = finding.end
    masked = mask(text, findings)
    assert sum(item.count for item in masked.redactions) == len(findings)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_what_is_not_found_stays_as_it_was(text: str) -> None:
    findings = find(text, CONTEXT)
    kept = [
        text[a:b]
        for a, b in zip([0, *(f.end for f in findings)], [*(f.start for f in findings), len(text)], strict=True)
    ]
    masked = mask(text, findings).text
    for piece in kept:
        start = masked.index(piece)
        masked = masked[start + len(piece) :]
    assert isinstance(mostly_secret(text, findings), bool)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400))
def test_any_unicode_is_read(text: str) -> None:
    scrub(text, CONTEXT).text.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=8), TEXTS)
def test_no_secret_value_of_an_environment_survives_masking(environ: dict[str, str], text: str) -> None:
    values = secret_values(environ)
    body = text + "".join(f" {value.value} " for value in values)
    masked = PLACEHOLDER.sub("\0", mask_environment(body, environ).text)
    assert [value for value in values if value.value in masked] == []
