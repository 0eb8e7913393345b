"""What a reason for one user's eyes is for others: no log, no places, no passwords."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.presence import MAX_WAITS_CHARS
from agentmesh.inference.logic.reasons import for_others


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("/home/me/models/7b.gguf is cut short. Download it again.", "7b.gguf is cut short. Download it again."),
        ("It crashed. Its log, /home/me/x.log, ends with:\nload: /home/me/7b.gguf", "It crashed."),
        ("No such file: '/mnt/a/b.gguf'.", "No such file: 'b.gguf'."),
        ("error:/mnt/a/b.gguf, and (~/c/d)", "error:b.gguf, and (d)"),
        ("--model=/mnt/a/b.gguf ~me/c /mnt/a/", "--model=b.gguf c a"),
        ("The engine does not answer /props at 3 tokens/s.", "The engine does not answer /props at 3 tokens/s."),
        ("org/repo/file.gguf has 7b/8b.", "org/repo/file.gguf has 7b/8b."),
        ("https://me:secret@hub.example/a/b?token=secret. Wait.", "https://hub.example/a/b. Wait."),
        ("The hub at https://hub.example/a/b could not be reached.", "The hub at https://hub.example/a/b could not be reached."),
        ("two\x1b[31m\twords", "two [31m words"),
        ("7b needs 6.9 GB: weights 4.7 GB + context 1.9 GB.", "7b needs 6.9 GB: weights 4.7 GB + context 1.9 GB."),
        ("", ""),
    ],
)  # fmt: skip
def test_a_reason_for_others(reason: str, shown: str) -> None:
    assert for_others(reason) == shown


def test_a_folder_that_is_known_may_have_spaces_in_its_name() -> None:
    reason = "/Users/Jane Doe/My Models/7b.gguf is cut short; /Users/Jane Doe/.agentmesh/x is full."
    shown = for_others(reason, ["/Users/Jane Doe/My Models", "/Users/Jane Doe", "/", ""])
    assert shown == "7b.gguf is cut short; x is full."


def test_a_reason_for_others_is_bounded() -> None:
    assert len(for_others("word " * 1_000)) <= MAX_WAITS_CHARS
    assert for_others("/a" * 50_000) == "a"
    assert len(for_others("~" * 50_000 + "/ " + "x://" * 20_000)) <= MAX_WAITS_CHARS
