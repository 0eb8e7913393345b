"""Refusals of models that were asked for on this node and do not answer here: which state, why, and when to come back."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.inference.proxy.ports import Outcome, Refused
from agentmesh.inference.serving_types import ModelState, Unready
from tests.fakes.routing import World, ask, fill, model, own, peer, refusal, settle, take, want

FAILED = Unready("tiny", ModelState.FAILED, "tiny.gguf is cut short", "tiny")


def test_a_model_that_failed_here_says_why_and_what_to_do_and_not_when_to_come_back() -> None:
    world = World(own(model("other")))
    world.unready["tiny"] = FAILED
    refused = refusal(world, want())
    assert (refused.status, refused.error_code, refused.retry_after_s) == (500, "model_failed", None)
    assert refused.message == (
        "'tiny' could not be served by this node. tiny.gguf is cut short. agentmesh status says more. "
        "To try again: agentmesh load tiny"
    )
    world.unready["tiny"] = msgspec.structs.replace(FAILED, again="")
    assert refusal(world, want()).message.endswith("To try again: load its file with agentmesh load")


@pytest.mark.parametrize(
    ("state", "reason", "code", "retry_s", "message"),
    [
        (ModelState.RESOLVING, "", "model_loading", 5, "on this node it is resolving. Try again in 5 s."),
        (
            ModelState.DOWNLOADING,
            "40 % of 5.0 GB are here.",
            "model_loading",
            30,
            "on this node it is downloading. 40 % of 5.0 GB are here. Try again in 30 s.",
        ),
        (ModelState.LOADING, "It crashed.", "model_loading", 5, "it is loading. It crashed. Try again in 5 s."),
        (ModelState.STANDBY, "desk hosts it.", "model_loading", 5, "in standby. desk hosts it. Try again in 5 s."),
        (ModelState.WAITING, "10 MB are missing.", "model_waiting", 30, "cannot be loaded yet. 10 MB are missing."),
    ],
)
@pytest.mark.parametrize("offered", [False, True])
def test_a_model_that_goes_on_here_says_its_state_and_reason(
    state: ModelState, reason: str, code: str, retry_s: int, message: str, offered: bool
) -> None:
    mine = msgspec.structs.replace(model(ready=False), waits=reason if state is ModelState.WAITING else "")
    world = World(own(mine if offered else model("other")))
    world.unready["tiny"] = Unready("tiny", state, reason)
    refused = refusal(world, want())
    assert (refused.status, refused.error_code, refused.retry_after_s) == (503, code, retry_s)
    assert refused.message.startswith("'tiny' ")
    assert refused.message.endswith(message)


async def test_a_model_that_failed_here_is_answered_by_another_node_and_says_so_only_when_none_can() -> None:
    world = World()
    world.unready["tiny"] = FAILED
    await world.offer(1, model())
    lease = take(world)
    assert lease.target.node == peer(1)
    lease.release(Outcome.ANSWERED)
    for offered, code in (
        (model(ready=False), "model_loading"),
        (msgspec.structs.replace(model(ready=False), waits="10 MB are missing."), "model_waiting"),
    ):
        await world.offer(1, offered)
        refused = refusal(world, want())
        assert (refused.status, refused.error_code) == (503, code)
        assert refused.retry_after_s
        assert refused.message.endswith(" This node could not serve it: tiny.gguf is cut short.")


async def test_a_model_that_waits_here_is_said_to_be_loading_where_another_node_loads_it() -> None:
    world = World(own(msgspec.structs.replace(model(ready=False), waits="10 MB are missing.")))
    world.unready["tiny"] = Unready("tiny", ModelState.WAITING, "10 MB are missing.")
    await world.offer(1, model(ready=False))
    assert refusal(world, want()).retry_after_s == 5


async def test_a_peer_is_told_nothing_of_what_failed_here() -> None:
    world = World(own(model("other")))
    world.unready["tiny"] = FAILED
    for local in (world, World(own(model(ready=False)))):
        local.unready["tiny"] = FAILED
        assert "cut short" not in refusal(local, want(local_only=True)).message


def test_without_any_model_auto_says_what_became_of_what_was_asked_for() -> None:
    world = World()
    world.unready["auto"] = FAILED
    refused = refusal(world, want("auto"))
    assert (refused.status, refused.error_code) == (500, "model_failed")
    assert refused.message.startswith("'tiny' could not be served by this node. tiny.gguf is cut short.")


async def test_who_waits_for_a_model_that_fails_for_good_is_told_at_once() -> None:
    world = World(own())
    fill(world)
    waiting = await ask(world)
    world.unready["tiny"] = FAILED
    world.directory.set_own([])
    await settle()
    with pytest.raises(Refused) as caught:
        await waiting
    assert caught.value.error_code == "model_failed"
