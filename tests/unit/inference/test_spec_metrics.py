"""What is read of llama-server's counters, whatever answers in its place."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.spec_metrics import Acceptance, acceptance_of

ANSWER = b"""HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r
# HELP llamacpp:spec_decode_num_draft_tokens_total Speculative: Total draft tokens generated
# TYPE llamacpp:spec_decode_num_draft_tokens_total counter
llamacpp:spec_decode_num_draft_tokens_total %s
llamacpp:spec_decode_num_accepted_tokens_total %s
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 6
"""


@pytest.mark.parametrize(
    ("drafted", "accepted", "expected"),
    [(b"511", b"6", (511, 6)), (b"0", b"0", (0, 0)), (b"1.23457e+06", b"999999", (1_234_570, 999_999))],
)
def test_the_counters_are_found_also_where_they_are_rounded(
    drafted: bytes, accepted: bytes, expected: tuple[int, int]
) -> None:
    assert acceptance_of(ANSWER % (drafted, accepted)) == Acceptance(*expected)


@pytest.mark.parametrize("value", [b"", b"nan", b"-1", b"1e999", b"1.2.3", b"9" * 400])
def test_what_is_no_count_is_none(value: bytes) -> None:
    assert acceptance_of(ANSWER % (value, b"1")) is None


def test_an_engine_that_does_not_count_is_none() -> None:
    assert acceptance_of(b"HTTP/1.1 200 OK\r\n\r\nllamacpp:n_decode_total 7\n") is None
    assert acceptance_of(b"") is None


def test_the_sentence_has_the_share_and_the_number() -> None:
    assert Acceptance(1_234, 750).sentence == "61 % of 1,234 drafted tokens were right."
    assert Acceptance(0, 0).sentence == ""
