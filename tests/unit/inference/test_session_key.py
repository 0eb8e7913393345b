"""What holds a conversation together, in the forms of all endpoints."""

from __future__ import annotations

import json
import mmap
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.inference.logic.session_key import KEY_BYTES, MAX_BEGINNING_CHARS, session_key


def key(**body: object) -> bytes:
    return session_key(json.dumps({"model": "m", "stream": True, **body}).encode())


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM, HELLO = said("system", "Be brief."), said("user", "Hello.")
MORE = [said("assistant", "Hi."), said("user", "How are you?")]

TURNS: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object]]] = {
    "chat": (
        {"messages": [SYSTEM, HELLO]},
        {"messages": [SYSTEM, HELLO, *MORE], "temperature": 1},
        {"messages": [SYSTEM, said("user", "Other."), *MORE]},
    ),
    "chat of parts": (
        {"messages": [said("user", [{"type": "text", "text": "Hello."}])]},
        {"messages": [said("user", [{"type": "text", "text": "Hello."}]), *MORE]},
        {"messages": [said("user", [{"type": "text", "text": "Other."}]), *MORE]},
    ),
    "anthropic": (
        {"system": [{"type": "text", "text": "S"}], "messages": [said("user", [{"type": "text", "text": "Hello.", "cache_control": "x"}])]},
        {"system": [{"type": "text", "text": "S", "cache_control": "x"}], "messages": [HELLO, *MORE]},
        {"system": "T", "messages": [HELLO, *MORE]},
    ),
    "responses": (
        {"instructions": "Be brief.", "input": "Hello."},
        {"instructions": "Be brief.", "input": "Hello."},
        {"instructions": "Be long.", "input": "Hello."},
    ),
    "responses of items": (
        {"instructions": "I", "input": [said("user", [{"type": "input_text", "text": "Hello."}])]},
        {"instructions": "I", "input": [said("user", [{"type": "input_text", "text": "Hello."}]), *MORE]},
        {"instructions": "I", "input": [said("user", [{"type": "input_text", "text": "Other."}]), *MORE]},
    ),
    "completions": (
        {"prompt": "x" * 400},
        {"prompt": "x" * 400 + " and on"},
        {"prompt": "y" + "x" * 400},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS)
def test_the_turns_of_a_conversation_have_one_key_and_another_conversation_another(name: str) -> None:
    first, second, other = (key(**turn) for turn in TURNS[name])
    assert first == second
    assert first != other


@pytest.mark.parametrize("turn", [turns[0] for turns in TURNS.values()])
def test_a_user_counts_before_a_session_and_that_before_what_is_said(turn: dict[str, object]) -> None:
    mine = key(user="me", messages=[])
    assert key(user="me", session_id="a", **turn) == mine
    assert key(metadata={"user_id": "me"}, **turn) == mine, "as Anthropic's clients say it"
    session = key(session_id="a", **turn)
    assert session == key(session_id="a", messages=[])
    assert session == key(prompt_cache_key="a", **turn), "as OpenAI's agents say it"
    assert len({mine, session, key(**turn), key(user="a", **turn)}) == 4


@pytest.mark.parametrize("nothing", [None, "", 7, [], {}])
def test_a_user_that_is_no_text_says_nothing(nothing: object) -> None:
    assert key(user=nothing, session_id=nothing, messages=[HELLO]) == key(messages=[HELLO])


def test_a_long_beginning_is_cut_at_the_same_place_in_each_turn() -> None:
    long = said("user", "word " * MAX_BEGINNING_CHARS)
    assert key(messages=[long]) == key(messages=[long, *MORE])
    assert key(messages=[SYSTEM, long]) == key(messages=[SYSTEM, long, *MORE])


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_body_has_a_key(body: bytes) -> None:
    assert len(session_key(body)) == KEY_BYTES


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(st.dictionaries(st.sampled_from(["messages", "input", "system", "prompt", "metadata", "user"]), JSON))
def test_any_values_where_others_were_expected_have_a_key(body: dict[str, object]) -> None:
    assert len(session_key(json.dumps(body).encode())) == KEY_BYTES


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":' + b"[" * 50_000,
        b'{"messages":[{"content":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"messages":[' + b"9" * 5_000 + b"]}",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    ],
)
def test_hostile_bodies_have_a_key(body: bytes) -> None:
    assert len(session_key(body)) == KEY_BYTES


def test_nothing_of_a_mapped_file_is_held() -> None:
    body = json.dumps({"metadata": {"user_id": 1}, "messages": [SYSTEM, HELLO]}).encode()
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        mapped = mmap.mmap(file.fileno(), len(body), access=mmap.ACCESS_READ)
        with memoryview(mapped) as view:
            assert session_key(view) == session_key(body)
        mapped.close()
