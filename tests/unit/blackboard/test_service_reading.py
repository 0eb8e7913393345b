"""Reading with the service: nothing unread twice or never, long polls that wake, streams that resume."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.blackboard.live import TooBusy
from agentmesh.core.errors import Ambiguous, InvalidInput
from tests.fakes.board import Board, open_board


async def _unread(board: Board, reader: str = "r", **arguments: object) -> list[str]:
    page = await board.service.feed(unread_only=True, reader=reader, **arguments)  # type: ignore[arg-type]
    return [post.text for post in page.posts]


# ------------------------------------------------------------------ unread


async def test_unread_shows_everything_once_newest_first_page_by_page_across_restarts(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        key, clock = board.key, board.clock
        await board.see(*(board.peer_post(f"old {i}", hours_ago=i + 1) for i in range(25)))
        first = await _unread(board, limit=10)
        assert len(first) == 10
    async with open_board(tmp_path, key=key, clock=clock) as board:
        await board.see(board.peer_post("new but dated earlier", hours_ago=40))
        second = await _unread(board, limit=10)
        third = await _unread(board, limit=10)
        assert "new but dated earlier" in second
        assert sorted(first + second + third) == sorted([f"old {i}" for i in range(25)] + ["new but dated earlier"])
        assert await _unread(board) == []
        assert len(await _unread(board, "someone else", limit=200)) == 26


async def test_filters_have_unread_positions_of_their_own(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("[org/a] one"), board.peer_post("[org/b] two", hours_ago=1))
        assert await _unread(board, topic="org/a") == ["[org/a] one"]
        assert len(await _unread(board)) == 2
        assert await _unread(board, topic="org/a") == []
        assert await _unread(board, topic="org/b") == ["[org/b] two"]


async def test_calls_of_one_reader_at_once_are_never_given_the_same_post(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(*(board.peer_post(f"post {i}", hours_ago=i) for i in range(30)))
        pages = await asyncio.gather(*(_unread(board, limit=5) for _ in range(8)))
        assert sorted(text for page in pages for text in page) == sorted(f"post {i}" for i in range(30))


async def test_a_reader_far_behind_a_busy_board_misses_and_repeats_nothing(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        seen: list[str] = []
        for turn in range(80):
            await board.see(*(board.peer_post(f"post {turn}.{i}") for i in range(3)))
            seen += await _unread(board, limit=2)
        while page := await _unread(board, limit=50):
            seen += page
        assert sorted(seen) == sorted(f"post {turn}.{i}" for turn in range(80) for i in range(3))


async def test_unread_needs_to_know_who_reads(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        with pytest.raises(InvalidInput, match="who reads"):
            await board.service.feed(unread_only=True)


# ------------------------------------------------------------------ waiting


async def test_a_long_poll_wakes_on_a_post_that_fits_and_on_no_other(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("[org/a] there already"))
        waiting = asyncio.ensure_future(board.service.feed(topic="org/a", wait_seconds=50))
        while not board.service._live._waiters:
            await asyncio.sleep(0)
        await board.service.post("[org/b] not this")
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.service.post("[org/a] this")
        page = await asyncio.wait_for(waiting, 40)
        assert [p.text for p in page.posts] == ["[org/a] this", "[org/a] there already"]


async def test_a_wait_for_unread_answers_at_once_when_there_is_some_and_empty_when_the_time_is_over(
    tmp_path: Path,
) -> None:
    async with open_board(tmp_path) as board:
        await board.service.post("there")
        assert await asyncio.wait_for(_unread(board, wait_seconds=50), 40) == ["there"]
        assert await asyncio.wait_for(_unread(board, wait_seconds=0.01), 40) == []
        waiting = asyncio.ensure_future(_unread(board, wait_seconds=50))
        while not board.service._live._waiters:
            await asyncio.sleep(0)
        await board.service.post("next")
        assert await asyncio.wait_for(waiting, 40) == ["next"]


async def test_too_many_waiting_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentmesh.blackboard.live.MAX_WAITERS", 0)
    async with open_board(tmp_path) as board:
        with pytest.raises(TooBusy):
            await board.service.feed(wait_seconds=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 0},
        {"limit": 201},
        {"wait_seconds": 56},
        {"wait_seconds": -1},
        {"wait_seconds": float("nan")},
        {"since_hours": 0},
        {"since_hours": float("inf")},
        {"kind": "RUMOUR"},
        {"topic": "a b"},
        {"cursor": "nonsense"},
        {"author": "\ud800"},
        {"thread": "zz"},
    ],
)
async def test_arguments_that_cannot_be_used_are_refused_with_a_sentence(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    async with open_board(tmp_path) as board:
        with pytest.raises(InvalidInput):
            await board.service.feed(**arguments)  # type: ignore[arg-type]


# ------------------------------------------------------------------ following


async def test_a_follower_sees_posts_and_retractions_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        events = board.service.events()
        assert await anext(events) is None
        posted = await board.service.post("one")
        event = await asyncio.wait_for(anext(events), 60)
        assert event is not None and event.post is not None
        assert (event.event, event.post.text) == ("post", "one")
        await board.service.retract(posted.id)
        gone = await asyncio.wait_for(anext(events), 60)
        assert gone is not None and gone.post is not None
        assert (gone.event, gone.post.id) == ("retracted", posted.id)
        await events.aclose()
        assert board.service._live.subscribers == 0
        await board.service.post("two")
        resumed = board.service.events(event.id)
        assert await anext(resumed) is None
        again = await asyncio.wait_for(anext(resumed), 60)
        assert again is not None and again.post is not None and again.post.text == "two"
        await board.service.post("three")
        live = await asyncio.wait_for(anext(resumed), 60)
        assert live is not None and live.post is not None and live.post.text == "three"
        await resumed.aclose()


async def test_a_follower_that_does_not_keep_up_is_dropped_and_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.live.SUBSCRIBER_QUEUE", 3)
    async with open_board(tmp_path) as board:
        events = board.service.events()
        await anext(events)
        for i in range(6):
            await board.service.post(f"post {i}")
        seen = [event async for event in events if event is not None]
        assert [event.event for event in seen] == ["post", "post", "post", "dropped"]
        assert board.service._live.subscribers == 0
        texts = [event.post.text for event in seen if event.post is not None]
        resumed = board.service.events(seen[-1].id)
        await anext(resumed)
        for _ in range(3):
            missed = await asyncio.wait_for(anext(resumed), 60)
            assert missed is not None and missed.post is not None
            texts.append(missed.post.text)
        assert texts == [f"post {i}" for i in range(6)]
        await resumed.aclose()


async def test_an_event_after_a_restart_is_not_older_than_those_before(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        one = await board.service.post("one")
        key, published = board.key, board.publisher.published
    async with open_board(tmp_path, key=key) as board:
        board.publisher.published += published
        events = board.service.events()
        await anext(events)
        await board.service.retract(one.id)
        gone = await asyncio.wait_for(anext(events), 60)
        assert gone is not None and gone.event == "retracted" and gone.id == "1"
        await events.aclose()


async def test_ambiguous_short_ids_are_named(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        ids = [bytes.fromhex(text.ljust(32, "0")) for text in ("abcd1", "abcd2")]
        await board.see(*(replace(board.peer_post(f"post {i}"), id=id_) for i, id_ in enumerate(ids)))
        with pytest.raises(Ambiguous, match="give more characters"):
            await board.service.post("hm", reply_to="abcd")
