"""What hosts and workers say on a `job` stream: what is sound, and what is shown of it."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from agentmesh.inference.logic.job_wire import (
    JOB_FORMAT,
    MAX_ASK_BYTES,
    MAX_SENTENCE_CHARS,
    JobAsk,
    JobFile,
    JobPing,
    JobState,
    ask_decoder,
    said,
    shown,
    wrong_in,
)
from agentmesh.inference.logic.model_files import MAX_SET_PARTS
from agentmesh.inference.logic.split_limits import MAX_DEVICES_OF_A_NODE
from agentmesh.inference.logic.split_offer import content_of

encode = msgspec.msgpack.encode


def an_ask(parts: int = 1, needs: tuple[tuple[str, int], ...] = (("", 1),)) -> JobAsk:
    files = tuple(JobFile(hashlib.sha256(bytes([n % 256, n // 256])).digest(), n, "n" * 255) for n in range(parts))
    content = content_of([file.sha256 for file in files])
    return JobAsk(content, "m" * 255, 1, files, needs, "c" * 40, (7, 0, 0))


def test_the_longest_ask_fits_the_frame_and_comes_back() -> None:
    needs = tuple((f"CUDA{number}", 1 << 60) for number in range(MAX_DEVICES_OF_A_NODE))
    ask = an_ask(MAX_SET_PARTS, needs)
    assert len(encode(ask)) < MAX_ASK_BYTES
    assert ask_decoder.decode(encode(ask)) == ask
    assert wrong_in(ask) == ""
    assert ask_decoder.decode(encode(JobPing())) == JobPing()


@pytest.mark.parametrize(
    "change",
    [
        {"files": ()},
        {"needs": ()},
        {"needs": tuple((str(n), 1) for n in range(MAX_DEVICES_OF_A_NODE + 1))},
        {"term": -1},
        {"content": ""},
        {"model": "m" * 256},
        {"files": (JobFile(b"short", 1, "n"),)},
        {"files": an_ask(1).files * (MAX_SET_PARTS + 1)},
        {"needs": (("", -1),)},
        {"rpc_version": (7, 0)},
    ],
)
def test_an_ask_that_cannot_be_is_no_ask(change: dict[str, object]) -> None:
    fields = {**msgspec.structs.asdict(an_ask()), **change}
    with pytest.raises(msgspec.ValidationError):
        ask_decoder.decode(encode(["ask", *fields.values()]))


def test_a_later_versions_fields_are_skipped() -> None:
    fields = list(msgspec.structs.asdict(an_ask()).values())
    assert ask_decoder.decode(encode(["ask", *fields, "new", 1])) == an_ask()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": JOB_FORMAT + 1}, "another version"),
        ({"content": "0" * 32}, "another model"),
        ({"needs": (("A", 1), ("A", 2))}, "a device twice"),
        ({"needs": (("A", 0), ("B", 0))}, "no memory"),
    ],
)
def test_what_nobody_could_serve_is_named(change: dict[str, object], sentence: str) -> None:
    assert sentence in wrong_in(msgspec.structs.replace(an_ask(), **change))


def test_sentences_are_cut_and_cleaned() -> None:
    word = said(JobState.ENDED, "a\x1b[1m\n" + "x" * 1_000, 7)
    assert len(word.sentence) == MAX_SENTENCE_CHARS and word.sentence.isprintable()
    assert word.seen_term == 7
    assert shown("é\u202e" + "x" * 100) == "é " + "x" * 78
