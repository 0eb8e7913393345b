"""The prompts: they render with and without arguments, and refuse what they do not know."""

from __future__ import annotations

import pytest

from agentmesh.blackboard.logic import mcp_prompts
from agentmesh.core.errors import InvalidInput


def test_there_are_a_standup_and_a_handoff() -> None:
    assert [prompt.name for prompt in mcp_prompts.PROMPTS] == ["standup", "handoff"]


def test_a_standup_without_arguments_covers_a_day_of_everything() -> None:
    text = mcp_prompts.find("standup").render({})
    assert "since_hours=24," in text
    assert "topic=" not in text


def test_a_standup_with_arguments_asks_for_them() -> None:
    text = mcp_prompts.find("standup").render({"topic": "acme/shop", "since_hours": "8", "author": " "})
    assert 'since_hours=8, topic="acme/shop"' in text
    assert "author=" not in text


def test_a_handoff_names_what_and_to_whom() -> None:
    text = mcp_prompts.find("handoff").render({"topic": "acme/shop", "to": "ada"})
    assert 'about "acme/shop" for ada' in text


def test_an_unknown_prompt_or_argument_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidInput, match="standup, handoff"):
        mcp_prompts.find("nope")
    with pytest.raises(InvalidInput, match="topic, to"):
        mcp_prompts.find("handoff").render({"who": "x"})
    with pytest.raises(InvalidInput, match="256"):
        mcp_prompts.find("handoff").render({"to": "x" * 257})
