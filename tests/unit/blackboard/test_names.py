"""Secrets in names and hidden in invisible characters: nothing of them is signed, stored in the clear or shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentmesh.blackboard.logic.hidden import without_hidden
from agentmesh.blackboard.logic.scrub_rules import ScrubContext, find, mostly_secret, scrub
from agentmesh.core.errors import InvalidInput
from tests.fakes.board import SECRET, MaskedText, open_board

TOKEN = "ghp_" + "a8Kd93LmQ02xZr7TvB5nYc1WfGh6JpEsUi4O"


class RuleScrubber:
    """The real rules, in this process; `down`: nothing can be checked."""

    def __init__(self) -> None:
        self.down = False
        self.failures = 0
        self.asked: list[str] = []

    async def scrub(self, text: str) -> MaskedText:
        self.asked.append(text)
        context = ScrubContext(users=("adalove",), hosts=("bighost",))
        if mostly_secret(text, find(text, context)):
            raise InvalidInput("The text is mostly secret.")
        masked = scrub(text, context)
        return MaskedText(masked.text, masked.redactions)  # type: ignore[arg-type]

    async def scrub_many(self, texts: Sequence[str]) -> list[MaskedText | None]:
        if self.down:
            self.failures += 1
            return [None for _ in texts]
        self.asked += texts
        masked = [scrub(text, ScrubContext(users=("adalove",))) for text in texts]
        return [MaskedText(m.text, m.redactions) for m in masked]  # type: ignore[arg-type]


def _holds(folder: Path, secret: str) -> bool:
    return any(secret.encode() in file.read_bytes() for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"author": TOKEN}, "author's name looks like a secret"),
        ({"author": f"ada {TOKEN}"}, "author's name looks like a secret"),
        ({"author": "ada@example.org"}, "author's name looks like a secret"),
        ({"author": "{{GITHUB_TOKEN}}"}, "author's name held a secret"),
        ({"topic": "{{API_KEY}}"}, "topic held a secret"),
        ({"topic": f"acme/{TOKEN}"}, "topic looks like a secret"),
    ],
)
async def test_a_secret_in_a_name_is_refused_and_leaves_nothing(
    tmp_path: Path, names: dict[str, str], sentence: str
) -> None:
    async with open_board(tmp_path, scrubber=RuleScrubber(), per_minute=1) as board:
        with pytest.raises(InvalidInput, match=sentence) as refused:
            await board.service.post("hello", **names)  # type: ignore[arg-type]
        assert TOKEN not in refused.value.message
        assert await board.service.count() == 0
        assert not board.publisher.published
        await board.service.post("hello")
    assert not _holds(tmp_path, TOKEN)


async def test_the_users_own_name_signs_posts_and_is_checked_once(tmp_path: Path) -> None:
    scrubber = RuleScrubber()
    async with open_board(tmp_path, scrubber=scrubber) as board:
        await board.service.post("hello", author="adalove", topic="adalove/tool")
        posted = await board.service.post("hello", author="adalove", topic="adalove/tool")
        view = await board.service.get(posted.id)
        assert (view.author, view.topic) == ("adalove", "adalove/tool")
        assert scrubber.asked.count("adalove") == 1


async def test_what_peers_put_into_names_is_masked_when_shown_and_found_by_nobody(tmp_path: Path) -> None:
    async with open_board(tmp_path, scrubber=RuleScrubber()) as board:
        post = board.peer_post(f"[acme/api branch:x-{TOKEN}] hello", author=TOKEN, topic=f"acme/{TOKEN}")
        await board.see(post, board.peer_post("hi", author="adalove"))
        view = await board.service.get(post.id.hex())
        assert (view.author, view.topic) == ("{{GITHUB_TOKEN}}", "acme/{{GITHUB_TOKEN}}")
        assert TOKEN not in f"{view.branch} {view.text}"
        assert not (await board.service.search(TOKEN)).posts
        assert {name.name for name in await board.service.authors()} == {"{{GITHUB_TOKEN}}", "adalove"}


@pytest.mark.parametrize("hidden", ["\u200b", "\u200d", "\u00ad", "\ufe0f", "\U000e0101", "\u2060\u200b", "\u202e"])
async def test_a_secret_split_by_invisible_characters_is_masked(tmp_path: Path, hidden: str) -> None:
    text = f"the token {TOKEN[:12]}{hidden}{TOKEN[12:]} is in the log of the build"
    async with open_board(tmp_path, scrubber=RuleScrubber()) as board:
        posted = await board.service.post(text)
        peers = board.peer_post(text)
        await board.see(peers)
        for id_ in (posted.id, peers.id.hex()):
            assert TOKEN[12:] not in (await board.service.get(id_)).text
        with pytest.raises(InvalidInput):
            await board.service.post("hello", author=f"{TOKEN[:12]}{hidden}{TOKEN[12:]}")


def test_invisible_characters_stay_where_scripts_and_emoji_need_them() -> None:
    for text in ("👩\u200d💻 done", "می\u200cخواهم", "1\ufe0f\u20e3 first", "❤\ufe0f thanks", "plain"):
        assert without_hidden(text) == text


async def test_posts_that_come_while_the_scrubber_is_out_of_order_wait_and_are_shown_whole(tmp_path: Path) -> None:
    scrubber = RuleScrubber()
    scrubber.down = True
    async with open_board(tmp_path, scrubber=scrubber) as board:
        post = board.peer_post(f"the password is not {SECRET} any more")
        await board.arrive(post)
        while scrubber.failures < 2:  # the post, and a text that any scrubber can check
            await asyncio.sleep(0)
        assert not (await board.service.feed()).posts
        key = board.key
    async with open_board(tmp_path, scrubber=RuleScrubber(), key=key) as board:
        await board.service.settled()
        assert (await board.service.get(post.id.hex())).text.startswith("the password is not")
