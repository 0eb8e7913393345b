"""Resources, their changes, prompts and completions, asked by the SDK's own client in both protocol eras."""

from __future__ import annotations

import asyncio
from typing import Any

import mcp_types as types
import pytest
from mcp import MCPError
from mcp.shared.subscriptions import ResourceUpdated

from tests.integration.test_mcp_server import ERAS, WAIT_S, Setup, era, setup, until

__all__ = ["era", "setup"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")  # the older era is spoken on purpose


def text(result: types.ReadResourceResult) -> str:
    (contents,) = result.contents
    assert isinstance(contents, types.TextResourceContents)
    assert contents.mime_type == "text/plain"
    return contents.text


async def test_feed_topic_and_post_are_offered(setup: Setup, era: str) -> None:
    async with setup.client(era) as client:
        resources = (await client.list_resources()).resources
        templates = (await client.list_resource_templates()).resource_templates
    assert [resource.uri for resource in resources] == ["blackboard://feed"]
    assert [template.uri_template for template in templates] == ["blackboard://post/{id}", "blackboard://topic/{topic}"]


async def test_they_can_be_read(setup: Setup, era: str) -> None:
    shop = await setup.node.add("FINDING: in the shop", topic="acme/shop")
    await setup.node.add("TIP: elsewhere", topic="acme/api")
    await setup.node.add("thanks", reply_to=shop["id"])
    async with setup.client(era) as client:
        feed = text(await client.read_resource("blackboard://feed"))
        topics = [
            text(await client.read_resource(f"blackboard://topic/{name}")) for name in ("acme/shop", "acme%2Fshop")
        ]
        post = text(await client.read_resource(f"blackboard://post/{shop['id'][:8]}"))
        empty = text(await client.read_resource("blackboard://topic/nobody/nothing"))
    assert "in the shop" in feed
    assert "elsewhere" in feed
    assert all("in the shop" in topic and "elsewhere" not in topic for topic in topics)
    assert "in the shop" in post
    assert "thanks" in post
    assert "no post here" in empty


@pytest.mark.parametrize("uri", ["blackboard://post/ffffffff", "blackboard://nothing", "file:///etc/passwd"])
@pytest.mark.parametrize(("mode", "code"), [("legacy", -32002), ("auto", types.INVALID_PARAMS)])
async def test_what_does_not_exist_is_not_found_in_the_code_of_the_era(
    setup: Setup, uri: str, mode: str, code: int
) -> None:
    async with setup.client(mode) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
    assert caught.value.code == code
    assert caught.value.data == {"uri": uri}


# ------------------------------------------------------------------ changes


async def _listening(setup: Setup) -> None:
    await until(lambda: any("/events" in target for _, target in setup.node.requests))


async def test_a_subscriber_of_the_older_era_is_told_of_its_resources_only(setup: Setup) -> None:
    told: list[str] = []

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.append(message.params.uri)

    async with setup.client("legacy", message_handler=on_message) as client:
        await client.subscribe_resource("blackboard://topic/acme/shop")
        await client.subscribe_resource("blackboard://feed")
        await _listening(setup)
        await setup.node.add("x", topic="acme/api")
        await setup.node.add("y", topic="acme/shop")
        await until(lambda: len(told) == 3)
        await client.unsubscribe_resource("blackboard://feed")
        await setup.node.add("z", topic="acme/shop")
        await until(lambda: len(told) == 4)
    assert sorted(told[:3]) == ["blackboard://feed", "blackboard://feed", "blackboard://topic/acme/shop"]
    assert told[3] == "blackboard://topic/acme/shop"


async def test_a_listener_of_the_newer_era_is_told_too(setup: Setup) -> None:
    async with setup.client("auto") as client:
        uris = ["blackboard://topic/acme%2Fshop"]
        async with client.listen(resource_subscriptions=uris) as events:
            await _listening(setup)
            await setup.node.add("x", topic="acme/api")
            await setup.node.add("y", topic="acme/shop")
            async with asyncio.timeout(WAIT_S):
                event = await anext(aiter(events))
    assert event == ResourceUpdated(uris[0])


async def test_after_a_gap_in_the_nodes_events_everything_watched_counts_as_changed(
    setup: Setup, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.logic.mcp_limits.RESUBSCRIBE_MIN_S", 0.01)
    told: list[str] = []

    async def on_message(message: Any) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.append(message.params.uri)

    async def restart_node() -> None:
        await _listening(setup)
        await setup.node.__aexit__()
        setup.node.requests.clear()
        await setup.node.__aenter__()
        await _listening(setup)
        await setup.node.add("after")

    async with setup.client(era, message_handler=on_message) as client:
        if era == "legacy":
            await client.subscribe_resource("blackboard://topic/acme/shop")
            await client.subscribe_resource("blackboard://feed")
            await restart_node()
        else:
            async with client.listen(
                resource_subscriptions=["blackboard://topic/acme/shop", "blackboard://feed"]
            ) as events:
                await restart_node()
                async with asyncio.timeout(WAIT_S):
                    told += [(await anext(aiter(events))).uri for _ in range(2)]
        await until(lambda: set(told) == {"blackboard://topic/acme/shop", "blackboard://feed"})


async def test_a_session_cannot_subscribe_without_end(setup: Setup) -> None:
    async with setup.client("legacy") as client:
        for number in range(128):
            await client.subscribe_resource(f"blackboard://post/{number}")
        with pytest.raises(MCPError, match="At most 128"):
            await client.subscribe_resource("blackboard://post/one-more")
        await client.subscribe_resource("blackboard://post/127")  # again is no more


# ------------------------------------------------------------------ prompts and completions


async def test_prompts_are_listed_and_rendered(setup: Setup, era: str) -> None:
    async with setup.client(era) as client:
        assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["standup", "handoff"]
        (message,) = (await client.get_prompt("standup", {"topic": "acme/shop"})).messages
        assert isinstance(message.content, types.TextContent)
        assert 'topic="acme/shop"' in message.content.text
        with pytest.raises(MCPError, match="standup, handoff"):
            await client.get_prompt("gossip")


@pytest.mark.parametrize(
    "ref",
    [
        types.PromptReference(type="ref/prompt", name="standup"),
        types.ResourceTemplateReference(type="ref/resource", uri="blackboard://topic/{topic}"),
    ],
)
async def test_topics_complete_with_those_that_begin_so_first(setup: Setup, era: str, ref: Any) -> None:
    for topic in ("big/shop", "shop/api", "acme/other"):
        await setup.node.add("x", topic=topic)
    async with setup.client(era) as client:
        completion = (await client.complete(ref, {"name": "topic", "value": "SHOP"})).completion
    assert completion.values == ["shop/api", "big/shop"]
    assert completion.total == 2


async def test_authors_complete_and_what_has_no_completions_gives_none(setup: Setup, era: str) -> None:
    await setup.node.add("x", author="grace")
    prompt = types.PromptReference(type="ref/prompt", name="standup")
    unknown = types.PromptReference(type="ref/prompt", name="unknown")
    async with setup.client(era) as client:
        assert (await client.complete(prompt, {"name": "author", "value": "g"})).completion.values == ["grace"]
        assert (await client.complete(unknown, {"name": "author", "value": "g"})).completion.values == []
        assert (await client.complete(prompt, {"name": "since_hours", "value": "1"})).completion.values == []


async def test_at_most_a_hundred_completions_are_given(setup: Setup) -> None:
    for number in range(120):
        await setup.node.add("x", author=f"agent-{number}")
    prompt = types.PromptReference(type="ref/prompt", name="standup")
    async with setup.client(ERAS[0]) as client:
        completion = (await client.complete(prompt, {"name": "author", "value": "agent"})).completion
    assert (len(completion.values), completion.total, completion.has_more) == (100, 120, True)
