"""The board on disk: durable when acknowledged, whole after faults, quick to find in."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.blackboard.logic.query import Filters
from agentmesh.blackboard.migrations import migrations
from agentmesh.core.errors import Ambiguous, InvalidInput, NotFound, StorageError
from tests.fakes.board import START_MS, Board, open_board, signed

HOUR_MS = 3_600_000


async def _texts(board: Board, query: str = "", **filters: object) -> list[str]:
    if query:
        found = await board.store.search(query, Filters(**filters), 20, None)  # type: ignore[arg-type]
        return [row.text for row in found.rows]
    rows, _ = await board.store.feed(Filters(**filters), 200, None)  # type: ignore[arg-type]
    return [row.text for row in rows]


# ------------------------------------------------------------------ records


async def test_records_of_every_kind_come_back_exactly_as_they_were_signed(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        records = [board.peer_post("one"), signed(board.peer, "member", b"chain", START_MS, 1_000)]
        await board.store.add(records)
        await board.store.add(records)
        assert await board.store.load([records[1].id, bytes(16), records[0].id]) == [
            records[1].signed,
            records[0].signed,
        ]
        assert await board.store.load_kind("member") == [records[1].signed]
        entries, tombstones = await board.store.load_index()
        assert [(e.id, e.kind, e.size_bytes) for e in entries] == [(r.id, r.kind, r.size_bytes) for r in records]
        assert tombstones == []


async def test_a_dropped_post_leaves_a_tombstone_that_survives_a_restart_until_its_day_is_over(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        key, clock, post = board.key, board.clock, board.peer_post("soon gone")
        other = signed(board.peer, "member", b"chain", START_MS, 1_000)
        await board.see(post, other)
        await board.store.drop([post.id, other.id, bytes(16)])
        assert await _texts(board) == await _texts(board, "gone") == []
    async with open_board(tmp_path, key=key, clock=clock) as board:
        entries, tombstones = await board.store.load_index()
        assert entries == []
        assert [(t.author, t.timestamp_ms, t.slot_id) for t in tombstones] == [
            (post.author, post.timestamp_ms, post.id)
        ]
        clock.now += 120 * HOUR_MS
        await board.store.drop([bytes(16)])
        assert (await board.store.load_index())[1] == []


async def test_a_retraction_takes_its_posts_slot_and_leaves_no_second_tombstone(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        post = board.peer_post("oops")
        retraction = signed(board.peer, "retraction", b"", post.timestamp_ms, 48 * HOUR_MS, post.id)
        await board.see(post, retraction)
        await board.store.drop([post.id])
        assert (await board.store.load_index())[1] == []
        await board.store.drop([retraction.id])
        assert [t.slot_id for t in (await board.store.load_index())[1]] == [post.id]


async def test_each_migration_is_noted_once_however_often_the_board_is_opened(tmp_path: Path) -> None:
    for _ in range(2):
        async with open_board(tmp_path):
            pass
    with sqlite3.connect(tmp_path / "blackboard.db") as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM _sqlite_migrations ORDER BY id")]
    assert names == [m.name for m in migrations._migrations]


# ------------------------------------------------------------------ many at once, and faults


async def test_one_failing_write_loses_no_other_of_its_group(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        database = board.store._database

        def fail(connection: sqlite3.Connection) -> None:
            raise LookupError("this one only")

        posts = [board.peer_post(f"post {i}") for i in range(20)]
        jobs = [board.store.add([post]) for post in posts]
        results = await asyncio.gather(*jobs[:10], database.write(fail), *jobs[10:], return_exceptions=True)
        assert [type(r) for r in results if r is not None] == [LookupError]
        assert len((await board.store.load_index())[0]) == 20


async def test_writes_beyond_the_queue_are_refused_at_once_and_the_rest_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.database.MAX_WRITE_QUEUE", 3)
    async with open_board(tmp_path) as board:
        results = await asyncio.gather(
            *(board.store.add([board.peer_post(f"post {i}")]) for i in range(400)), return_exceptions=True
        )
        stored = len((await board.store.load_index())[0])
        refused = [r for r in results if isinstance(r, StorageError)]
        assert refused
        assert stored == 400 - len(refused)


async def test_a_full_disk_acknowledges_nothing_and_the_board_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("before"))
        connection = board.store._database._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        many = [board.peer_post(f"{i} " + "x" * 4_000) for i in range(200)]
        with pytest.raises(StorageError, match="disk is full"):
            await board.store.add(many)
        assert len((await board.store.load_index())[0]) == 1
        connection.execute("PRAGMA max_page_count = 1000000")
        await board.store.add(many)
        assert len((await board.store.load_index())[0]) == 201


def test_a_file_that_may_not_grow_is_a_storage_error_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    script = """
        import asyncio, resource, signal, sys
        from pathlib import Path
        from agentmesh.core.errors import StorageError
        from tests.fakes.board import open_board

        async def main():
            async with open_board(Path(sys.argv[1])) as board:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
                kept = failed = 0
                for i in range(300):
                    try:
                        await board.store.add([board.peer_post(f"{i} " + "x" * 4_000)])
                        kept += 1
                    except StorageError:
                        failed += 1
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await board.store.add([board.peer_post("after")])
                print(kept, failed, len((await board.store.load_index())[0]))

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    root = Path(__file__).parents[3]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    kept, failed, stored = map(int, ended.stdout.split())
    assert kept > 0
    assert failed > 0
    assert stored == kept + 1


async def test_a_board_locked_by_another_process_says_so_and_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.database.BUSY_TIMEOUT_MS", 20)
    async with open_board(tmp_path) as board:
        other = sqlite3.connect(tmp_path / "blackboard.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(board.store.add([board.peer_post(f"post {i}")]) for i in range(5)), return_exceptions=True
        )
        assert all(isinstance(r, StorageError) and "locked" in r.message for r in results)
        assert await _texts(board) == []
        other.execute("ROLLBACK")
        other.close()
        await board.see(board.peer_post("afterwards"))
        assert await _texts(board) == ["afterwards"]


async def test_a_file_that_is_no_database_is_moved_aside_and_said(tmp_path: Path) -> None:
    (tmp_path / "blackboard.db").write_bytes(b"this was never a database, " * 500)
    async with open_board(tmp_path) as board:
        await asyncio.sleep(0)
        await board.see(board.peer_post("fresh"))
        assert await _texts(board) == ["fresh"]
        assert len(board.resets) == 1
        assert "damaged" in board.resets[0]
    assert len([p for p in tmp_path.iterdir() if ".damaged-" in p.name]) >= 1


async def test_damage_found_while_running_starts_over_and_the_service_goes_on(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        key, clock = board.key, board.clock
        await board.see(*(board.peer_post(f"post {i} " + "x" * 1_000) for i in range(100)))
    path = tmp_path / "blackboard.db"
    raw = bytearray(path.read_bytes())
    raw[4096 * 3 :] = b"\x5a" * (len(raw) - 4096 * 3)
    path.write_bytes(raw)
    async with open_board(tmp_path, key=key, clock=clock) as board:
        for _ in range(3):
            try:
                await board.see(board.peer_post("refilled"))
                break
            except StorageError:
                continue
        assert await _texts(board) == ["refilled"]
        assert board.resets


async def test_a_damaged_search_index_is_rebuilt_without_losing_a_post(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(*(board.peer_post(f"pelican {i}") for i in range(5)))
        await board.store._database.write(lambda c: c.execute("DELETE FROM posts_terms_data WHERE id > 10").rowcount)
        for _ in range(3):
            try:
                await board.see(board.peer_post("pelican again"))
                await _texts(board, "pelican")
            except StorageError:
                continue
        assert len(await _texts(board, "pelican")) >= 6
        assert board.resets == []


async def test_what_was_acknowledged_is_there_after_the_process_is_killed(tmp_path: Path) -> None:
    script = """
        import asyncio, os, signal, sys
        from pathlib import Path
        from tests.fakes.board import open_board

        async def main():
            async with open_board(Path(sys.argv[1])) as board:
                for i in range(50):
                    await board.service.post(f"post {i}")
                    print(i, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    root = Path(__file__).parents[3]
    process = await asyncio.create_subprocess_exec(*command, cwd=root, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    acknowledged = len(out.split())
    assert acknowledged == 50
    async with open_board(tmp_path) as board:
        assert await board.store.count() == 50


# ------------------------------------------------------------------ finding


async def test_all_terms_come_first_then_any_then_prefixes_and_parts(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        texts = [
            "alpha and beta",
            "alpha alone",
            "beta alone",
            "getUserName in src/billing/invoice.py",
            "reconciliation",
        ]
        await board.see(*(board.peer_post(text, hours_ago=i) for i, text in enumerate(texts)))
        assert (await _texts(board, "alpha beta"))[0] == "alpha and beta"
        assert set(await _texts(board, "alpha beta")) == {"alpha and beta", "alpha alone", "beta alone"}
        assert await _texts(board, "reconcil") == ["reconciliation"]
        assert await _texts(board, "serNam") == ["getUserName in src/billing/invoice.py"]
        assert await _texts(board, "src/billing/invoice.py") == ["getUserName in src/billing/invoice.py"]
        assert await _texts(board, "conciliat") == ["reconciliation"]
        assert await _texts(board, "pelican") == []


@pytest.mark.parametrize(
    "query",
    ["v1.2", "C++", "org/repo", "AND", '"', '""', "NEAR(", "NEAR(a b, 2)", "*", "col:", "text:x", "\x00", "a\x00b", "🎉", "->",
     "(", "^x", "-x", "x" * 10_000, "word " * 2_000, "' OR 1=1 --", "\ud800", "é", "日本語", "NOT", "a OR", "{a b}", "\\"],
)  # fmt: skip
async def test_no_query_fails_and_each_finds_the_post_that_holds_it(tmp_path: Path, query: str) -> None:
    async with open_board(tmp_path) as board:
        holds = all(c >= " " and not "\ud800" <= c <= "\udfff" for c in query) and len(query) < 100
        text = f"before {query} after" if holds else "nothing special"
        await board.see(board.peer_post(text))
        page = await board.service.search(query)
        if holds and query.strip('"'):
            assert [p.text for p in page.posts] == [text]


async def test_filters_are_exact_whatever_a_text_pretends(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(
            board.peer_post("QUESTION: [org/a] one", author="Ann"),
            board.peer_post("NOTE about org/a by Ann " + (Filters(topic="org/a").tag() or ""), author="Bob"),
        )
        assert await _texts(board, topic="ORG/A") == ["QUESTION: [org/a] one"]
        assert await _texts(board, author="ann", kind="QUESTION") == ["QUESTION: [org/a] one"]
        assert await _texts(board, "one", author="Bob") == []
        assert await _texts(board, topic="org/b") == []


async def test_pages_are_whole_and_do_not_shift_while_posts_arrive(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(*(board.peer_post(f"pelican {i} " + "fish " * (i % 7), hours_ago=i / 10) for i in range(50)))
        wanted = {f"pelican {i} " + "fish " * (i % 7) for i in range(50)}
        for read in (board.service.search, None):
            seen: list[str] = []
            cursor = None
            for turn in range(20):
                page = await (
                    read("pelican", limit=7, cursor=cursor) if read else board.service.feed(limit=7, cursor=cursor)
                )
                seen += [p.text for p in page.posts]
                board.clock.now += 1
                await board.see(board.peer_post(f"pelican new {turn} {read is None}"))
                cursor = page.next_cursor
                if cursor is None:
                    break
            old = [text for text in seen if "new" not in text]
            assert sorted(old) == sorted(wanted)
            assert len(seen) == len(set(seen))


async def test_matches_beyond_those_that_are_ranked_follow_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.blackboard.store_search.RANKED_MATCHES", 10)
    async with open_board(tmp_path) as board:
        await board.see(*(board.peer_post(f"pelican {i}", hours_ago=i / 10) for i in range(35)))
        seen: list[str] = []
        cursor = None
        while True:
            page = await board.service.search("pelican", limit=4, cursor=cursor)
            seen += [p.text for p in page.posts]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(seen[:10]) == sorted(f"pelican {i}" for i in range(10))
        assert seen[10:] == [f"pelican {i}" for i in range(10, 35)]


async def test_expired_posts_are_not_shown_even_before_they_are_dropped(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        await board.see(board.peer_post("pelican short", lifetime_ms=5_000), board.peer_post("pelican long"))
        board.clock.now += 6_000
        assert await _texts(board) == await _texts(board, "pelican") == ["pelican long"]


async def test_a_short_id_finds_its_post_or_says_why_not(tmp_path: Path) -> None:
    async with open_board(tmp_path) as board:
        ids = [bytes.fromhex(text.ljust(32, "0")) for text in ("abcd1", "abcd2", "ffff")]
        await board.see(*(replace(board.peer_post(f"post {i}"), id=id_) for i, id_ in enumerate(ids)))
        assert (await board.store.find(" ABCD1 ")).text == "post 0"
        assert (await board.store.find("ffff")).text == "post 2"
        with pytest.raises(Ambiguous, match="several"):
            await board.store.find("abcd")
        with pytest.raises(NotFound, match="expired, was retracted"):
            await board.store.find("0" * 32)
        for bad in ("", "abc", "xyz12345", "a" * 33):
            with pytest.raises(InvalidInput):
                await board.store.find(bad)


async def test_an_interrupted_search_answers_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_board(tmp_path) as board:
        await board.see(*(board.peer_post(f"pelican {i} " + "word " * 50) for i in range(300)))
        monkeypatch.setattr("agentmesh.blackboard.store.SEARCH_BUDGET_MS", 0)
        monkeypatch.setattr("agentmesh.blackboard.database._PROGRESS_STEPS", 50)
        page = await board.service.search("pelican word")
        assert len(page.posts) < 20
