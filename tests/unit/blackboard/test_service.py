"""The service's promises: who may post what, one post per key, nothing unmasked, nothing unread twice or never."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmesh.blackboard.logic.scrub_machine import ScrubContext
from agentmesh.blackboard.masking import WITHHELD
from agentmesh.blackboard.scrub import ScrubPool
from agentmesh.core.errors import InvalidInput, NotFound, QuotaExceeded, StorageError
from tests.fakes.board import SECRET, Board, open_board, signed_post


async def _unread(board: Board, reader: str = "r", **arguments: object) -> list[str]:
    page = await board.service.feed(unread_only=True, reader=reader, **arguments)  # type: ignore[arg-type]
    return [post.text for post in page.posts]


# ------------------------------------------------------------------ posting


async def test_a_post_is_masked_headed_and_visible_when_post_returns(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        posted = await board.service.post(
            f"FINDING: [org/repo branch:dev] the password is {SECRET} {SECRET}", author="Ann"
        )
        view = await board.service.get(posted.id[:8])
        assert view.text == "FINDING: [org/repo branch:dev] the password is {{PASSWORD}} {{PASSWORD}}"
        assert (view.kind, view.topic, view.branch, view.author) == ("FINDING", "org/repo", "dev", "Ann")
        assert [(r.kind, r.count) for r in posted.redactions] == [("PASSWORD", 2)]
        assert SECRET.encode() not in board.publisher.published[0].payload
        assert len(view.node_id) == 52


async def test_a_topic_that_is_given_wins_over_the_texts(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        posted = await board.service.post("[org/one branch:x] hi", topic="org/two")
        view = await board.service.get(posted.id)
        assert (view.topic, view.branch, view.author) == ("org/two", None, "me")


@pytest.mark.parametrize("text", ["", "  ", "x" * 4_097, "x" * 17_000, "\ud800", SECRET])
async def test_a_text_that_is_refused_costs_no_quota_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    async with open_board(tmp_path, per_minute=1) as board:
        for _ in range(3):
            with pytest.raises(InvalidInput):
                await board.service.post(text)
        await board.service.post("fine")
        assert await board.service.count() == 1


async def test_an_author_name_over_its_minute_is_told_when_to_try_again_and_others_go_on(tmp_path: Path) -> None:
    async with open_board(tmp_path, per_minute=2) as board:
        await board.service.post("one", author="Ann")
        board.clock.now += 20_000
        await board.service.post("two", author="ann")
        with pytest.raises(QuotaExceeded, match="try again in 40 s"):
            await board.service.post("three", author="Ann")
        await board.service.post("one", author="Bob")
        board.clock.now += 40_001
        await board.service.post("three", author="Ann")


async def test_an_authors_minute_survives_a_restart(tmp_path: Path) -> None:
    async with open_board(tmp_path, per_minute=1) as board:
        key, clock = board.key, board.clock
        await board.service.post("one", author="Ann")
    async with open_board(tmp_path, key=key, clock=clock, per_minute=1) as board:
        with pytest.raises(QuotaExceeded):
            await board.service.post("two", author="Ann")


async def test_a_node_over_quota_is_refused_before_anything_is_signed(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        board.publisher.quota = 0
        with pytest.raises(QuotaExceeded, match="try again in 30 s"):
            await board.service.post("one")
        assert board.publisher.published == []


async def test_the_same_key_gets_the_same_answer_and_one_post_also_at_once_and_after_a_restart(tmp_path: Path) -> None:
    text = f"note {SECRET}"
    async with open_board(tmp_path) as board:
        key, clock = board.key, board.clock
        answers = await asyncio.gather(*(board.service.post(text, idempotency_key="k") for _ in range(10)))
        assert all(answer == answers[0] for answer in answers)
    async with open_board(tmp_path, key=key, clock=clock) as board:
        assert await board.service.post(text, idempotency_key="k") == answers[0]
        assert await board.service.count() == 1
        other = await board.service.post(text, idempotency_key="k2")
        assert other.id != answers[0].id
        with pytest.raises(InvalidInput, match="used for another post"):
            await board.service.post("something else", idempotency_key="k")


async def test_a_key_whose_first_attempt_failed_may_be_used_again(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        board.publisher.quota = 0
        with pytest.raises(QuotaExceeded):
            await board.service.post("one", idempotency_key="k")
        board.publisher.quota = 5
        await board.service.post("one", idempotency_key="k")
        assert await board.service.count() == 1


async def test_a_post_of_ours_that_comes_back_from_a_peer_still_answers_its_key(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    async with open_board(first) as board:
        posted = await board.service.post("one", idempotency_key="k")
        record, key, clock = board.publisher.published[0], board.key, board.clock
    async with open_board(second, key=key, clock=clock) as board:
        await board.see(record)
        assert (await board.service.post("one", idempotency_key="k")).id == posted.id
        assert await board.service.count() == 1


async def test_a_failing_disk_gives_the_place_in_the_minute_back(tmp_path: Path) -> None:
    async with open_board(tmp_path, per_minute=1) as board:
        connection = board.store._database._connection
        assert connection is not None
        connection.execute("PRAGMA query_only = 1")
        with pytest.raises(StorageError, match="read-only"):
            await board.service.post("one")
        connection.execute("PRAGMA query_only = 0")
        await board.service.post("one")


async def test_replies_may_come_before_their_post_and_short_ids_must_be_found(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        question = board.peer_post("QUESTION: why?", hours_ago=1)
        await board.service.post("because", reply_to=question.id.hex())
        with pytest.raises(NotFound):
            await board.service.post("because", reply_to=question.id.hex()[:8])
        await board.see(question)
        assert (await board.service.unanswered()).posts == ()
        await board.service.post("because", reply_to=question.id.hex()[:8])
        thread = await board.service.thread(question.id.hex()[:8])
        assert [post.text for post in thread.posts] == ["because", "because", "QUESTION: why?"]
        reply = thread.posts[0].id
        assert (await board.service.thread(reply)).posts == thread.posts


# ------------------------------------------------------------------ questions and claims


async def test_a_question_is_unanswered_until_a_reply_and_again_when_the_reply_is_gone(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        question = await board.service.post("QUESTION: [org/repo] why do widgets wobble?")
        reply = await board.service.post("they are round", reply_to=question.id)
        assert (await board.service.search("widgets", unanswered=True)).posts == ()
        await board.service.retract(reply.id)
        assert [p.id for p in (await board.service.search("widgets", unanswered=True)).posts] == [question.id]
        assert [p.id for p in (await board.service.feed(unanswered=True, topic="org/repo")).posts] == [question.id]
        assert (await board.service.feed(unanswered=True, kind="TIP")).posts == ()


async def test_a_poster_is_shown_overlapping_claims_of_others_the_same_question_and_the_thread(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(
            board.peer_post("CLAIM: [org/repo] I am changing src/billing/**"),
            board.peer_post("CLAIM: [org/repo] I am changing docs/**"),
            board.peer_post("QUESTION: how does the invoice scheduler restart?"),
        )
        claim = await board.service.post("CLAIM: [org/repo] src/billing/invoice.py", author="Ann")
        assert [p.text for p in claim.related] == ["CLAIM: [org/repo] I am changing src/billing/**"]
        again = await board.service.post("CLAIM: [org/repo] src/billing/invoice.py", author="Ann")
        assert [p.author for p in again.related] == ["peer"]
        question = await board.service.post("QUESTION: does the invoice scheduler ever restart itself?")
        assert [p.text for p in question.related] == ["QUESTION: how does the invoice scheduler restart?"]
        reply = await board.service.post("never", reply_to=question.related[0].id)
        assert [p.id for p in reply.related] == [question.related[0].id]
        assert (await board.service.post("a plain note about invoice")).related == ()


@pytest.mark.parametrize(
    ("done", "ends"),
    [
        ("DONE: [org/repo] src/billing/** is finished", True),
        ("DONE: [org/repo] all of it", True),
        ("DONE: [org/repo] docs/x.md", False),
        ("DONE: [org/other] all of it", False),
        ("STATUS: [org/repo] nearly", False),
    ],
)
async def test_a_claim_stands_until_its_own_author_is_done(tmp_path: Path, done: str, ends: bool) -> None:
    async with open_board(tmp_path) as board:
        claim = await board.service.post("CLAIM: [org/repo] src/billing/**", author="Ann")
        await board.service.post(done, author="Bob")
        assert [c.id for c in await board.service.claims()] == [claim.id]
        ended = await board.service.post(done, author="Ann")
        assert (await board.service.claims() == ()) == ends
        if ends:
            await board.service.retract(ended.id)
            assert [c.id for c in await board.service.claims()] == [claim.id]


async def test_a_done_that_arrives_before_its_claim_ends_it_all_the_same(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        claim = board.peer_post("CLAIM: [org/repo] src/**", hours_ago=2)
        done = board.peer_post("finished: DONE", hours_ago=1)
        done = signed_post(board.peer, "DONE: yes", done.timestamp_ms, reply_to=claim.id)
        await board.see(done)
        await board.see(claim)
        assert await board.service.claims() == ()


# ------------------------------------------------------------------ what peers wrote


async def test_a_peers_secret_is_kept_for_replication_and_never_shown_or_found(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        record = board.peer_post(f"login with {SECRET} please")
        await board.see(record)
        assert (await board.store.load([record.id]))[0] == record.signed
        assert [p.text for p in (await board.service.search("login")).posts] == ["login with {{PASSWORD}} please"]
        assert (await board.service.search(SECRET)).posts == ()


async def test_a_text_that_cannot_be_checked_is_withheld_and_its_neighbours_are_shown(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("one"), board.peer_post("two [stall] secret", hours_ago=1))
        assert [p.text for p in (await board.service.feed()).posts] == ["one", WITHHELD]
        assert (await board.service.search("stall")).posts == ()


async def test_a_withheld_text_appears_when_it_can_be_checked_and_is_unread_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_board(tmp_path) as board:
        board.scrubber.stalls = 2
        await board.see(board.peer_post("[stall] once"))
        assert await _unread(board) == [WITHHELD]  # it is not tried again for a minute, however slow this was
        monkeypatch.setattr("agentmesh.blackboard.masking.MASKING_AGAIN_MS", 5)
        board.service._masking.kick()  # begins to wait anew
        assert await asyncio.wait_for(_unread(board, wait_seconds=50), 60) == ["[stall] once"]
        assert await board.service.count() == 1


async def test_a_text_that_never_can_be_checked_is_tried_a_few_times_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.masking.MASKING_AGAIN_MS", 1)
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("[stall] always"))
        while board.service._masking._withheld:
            await asyncio.sleep(0)
        assert [text for text in board.scrubber.asked if "[stall]" in text] == ["[stall] always"] * 4
        assert [p.text for p in (await board.service.feed()).posts] == [WITHHELD]


async def test_the_real_scrubber_masks_what_is_posted_and_what_arrives(tmp_path: Path) -> None:
    token = "ghp_" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5"
    pool = ScrubPool(ScrubContext())
    try:
        async with open_board(tmp_path, scrubber=pool) as board:
            posted = await board.service.post(f"the deploy used {token} today, please rotate it")
            assert token not in (await board.service.get(posted.id)).text
            assert sum(r.count for r in posted.redactions) == 1
            await board.see(board.peer_post(f"and mine was {token} as well, sorry", hours_ago=1))
            texts = [p.text for p in (await board.service.feed()).posts]
            assert len(texts) == 2
            assert not any(token in text or text == WITHHELD for text in texts)
    finally:
        await pool.close()


async def test_storing_does_not_wait_for_masking_and_a_restart_goes_on_with_it(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        key, clock = board.key, board.clock
        board.scrubber.gate.clear()
        await board.arrive(*(board.peer_post(f"post {i}") for i in range(200)))
        assert await board.store.count() == 0
        await board.service.close()
    async with open_board(tmp_path, key=key, clock=clock) as board:
        await board.service.settled()
        assert await board.service.count() == 200


async def test_a_post_dropped_while_it_was_masked_stays_gone(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        board.scrubber.gate.clear()
        record = board.peer_post("gone before it was seen")
        await board.arrive(record)
        await board.store.drop([record.id])
        board.scrubber.gate.set()
        await board.see(board.peer_post("later"))
        assert [p.text for p in (await board.service.feed()).posts] == ["later"]


# ------------------------------------------------------------------ retracting


async def test_only_this_nodes_posts_can_be_retracted_and_then_they_are_gone_at_once(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        mine = await board.service.post("[org/mine] oops")
        theirs = board.peer_post("not yours")
        await board.see(theirs)
        with pytest.raises(InvalidInput, match="another node"):
            await board.service.retract(theirs.id.hex())
        await board.service.retract(mine.id[:8])
        with pytest.raises(NotFound):
            await board.service.retract(mine.id)
        assert [p.text for p in (await board.service.feed()).posts] == ["not yours"]
        assert await board.service.topics() == ()
        assert [a.name for a in await board.service.authors()] == ["peer"]
