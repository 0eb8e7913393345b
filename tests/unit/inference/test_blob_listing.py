"""What members say together of a repository, when the hub cannot be asked."""

from __future__ import annotations

from agentmesh.inference.blob_listing import agreed
from agentmesh.inference.logic.blob_wire import Found, FoundFile

A, B = "a" * 40, "b" * 40
ONE, OTHER = FoundFile("m.gguf", 5, bytes(32)), FoundFile("m.gguf", 5, b"x" * 32)
SECOND = FoundFile("n.gguf", 6, bytes(32))


def test_nobody_who_has_anything_gives_nothing() -> None:
    assert agreed([]) == Found("")
    assert agreed([Found(""), Found("")]) == Found("")


def test_what_members_have_of_one_commit_is_put_together() -> None:
    assert agreed([Found(A, (ONE,)), Found(""), Found(A, (ONE, SECOND))]) == Found(A, (ONE, SECOND))


def test_the_commit_that_most_members_name_counts() -> None:
    assert agreed([Found(B, (OTHER,)), Found(A, (ONE,)), Found(A, (ONE,))]) == Found(A, (ONE,))


def test_a_file_on_which_members_differ_is_left_out() -> None:
    assert agreed([Found(A, (ONE, SECOND)), Found(A, (OTHER,)), Found(A, (ONE,))]) == Found(A, (SECOND,))


def test_a_file_that_one_member_names_twice_differently_is_left_out() -> None:
    assert agreed([Found(A, (ONE, OTHER))]) == Found(A)
