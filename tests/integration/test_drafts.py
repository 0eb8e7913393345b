"""Drafts from a name to a file: found, fetched from a hub on loopback, compared with their target, refused or left out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.core.errors import AgentMeshError, InvalidInput
from agentmesh.inference.draft import NO_DRAFT, DraftChoice, Drafter, draft_words, fit_with_draft
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.engine.errors import EngineTooOld
from agentmesh.inference.fetching import DownloadStopped, Fetcher
from agentmesh.inference.logic.drafting import DraftFlags
from agentmesh.inference.logic.fit import PROCESS_BYTES, Room, Wanted, fit_model
from agentmesh.inference.models.catalog import CatalogEntry, draft_of, look_up
from agentmesh.inference.models.errors import HubError, HubNotFound, ModelFileUnusable, UnknownModel
from agentmesh.inference.models.gguf import read_model
from agentmesh.inference.models.settings import HubSettings
from agentmesh.inference.serving_types import Progress
from tests.fakes.hub_server import Fault, HubServer
from tests.fakes.tiny_gguf import LLAMA, write_tiny

FLAGS = ("--spec-draft-model", "--spec-draft-n-max", "--spec-draft-device", "--spec-draft-ngl", "--spec-type")
ENGINE = Engine(("s",), None, None, None, "cpu", "PATH", 1, "c", frozenset(FLAGS), (), True)
OLD_ENGINE = replace(ENGINE, flags=frozenset(("--model",)))
REPO = "maker/Small-GGUF"
DEADLINE_S = 60.0


def catalog_pair() -> tuple[CatalogEntry, CatalogEntry]:
    target = look_up("32b")
    draft = draft_of(target)
    assert draft is not None
    return target, draft


TARGET, DRAFT = catalog_pair()


class World:
    """A model on disk, an empty cache, and a hub with a draft in its catalog place and another one."""

    def __init__(self, root: Path, hub: HubServer) -> None:
        self.hub = hub
        self.target = write_tiny(root / "target.gguf", replace(LLAMA, layers=3))[0]
        self.small = write_tiny(root / "small.gguf", replace(LLAMA, layers=1, seed=2))[0]
        self.other = root / "other.gguf"
        self.other.write_bytes(with_two_tokens_changed(self.small.read_bytes()))
        hub.repos[DRAFT.repo] = {DRAFT.file: self.small.read_bytes()}
        hub.repos[REPO] = {"Small-Q8_0.gguf": self.small.read_bytes()}
        self.cache = root / "cache"
        self.stop = threading.Event()
        self.seen: list[Progress] = []
        self.drafter = self.make_drafter()

    def make_drafter(self, wait_s: float = DEADLINE_S) -> Drafter:
        settings = HubSettings(self.cache, self.hub.endpoint)
        return Drafter(Fetcher(settings=lambda: settings), catalog_wait_s=wait_s)

    async def find(self, flags: DraftFlags, *, is_split: bool = True, engine: Engine = ENGINE) -> DraftChoice:
        async with asyncio.timeout(DEADLINE_S):
            return await self.drafter.find(
                flags,
                "big",
                TARGET,
                self.target,
                engine=engine,
                is_split=is_split,
                stop=self.stop,
                seen=self.seen.append,
            )


def with_two_tokens_changed(data: bytes) -> bytes:
    for old, new in ((b"<0x41>", b"<0x4?>"), (b"<0x42>", b"<0x41>"), (b"<0x4?>", b"<0x42>")):
        assert data.count(old) == 1
        data = data.replace(old, new)
    return data


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
async def world(tmp_path: Path, hub: HubServer) -> AsyncIterator[World]:
    made = World(tmp_path, hub)
    yield made
    made.stop.set()
    hub.resume.set()
    await made.drafter.close()


# ------------------------------------------------------------------ the catalog's


async def test_a_split_gets_the_catalog_s_draft_from_the_hub_and_then_from_the_cache(world: World) -> None:
    choice = await world.find(DraftFlags())
    assert choice.path is not None
    assert choice.path.read_bytes() == world.small.read_bytes()
    assert (choice.max_tokens, choice.named, choice.id) == (8, False, DRAFT.name)
    assert choice.sentence == f"{DRAFT.name} drafts up to 8 tokens for big."
    assert world.seen[-1] == Progress(world.small.stat().st_size, world.small.stat().st_size)
    world.hub.repos.clear()
    again = await world.find(DraftFlags(draft_max=4))
    assert (again.path, again.max_tokens) == (choice.path, 4)


async def test_a_solo_model_gets_one_only_if_asked(world: World) -> None:
    assert await world.find(DraftFlags(), is_split=False) == NO_DRAFT
    assert await world.find(DraftFlags(no_draft=True)) == NO_DRAFT
    assert not world.hub.requests
    assert (await world.find(DraftFlags(draft_max=3), is_split=False)).max_tokens == 3


async def test_a_model_without_an_entry_runs_without_and_says_so_if_asked(world: World) -> None:
    find = world.drafter.find
    for flags, said in ((DraftFlags(), ""), (DraftFlags(draft_max=8), "--draft")):
        choice = await find(flags, "m", None, world.target, engine=ENGINE, is_split=True, stop=world.stop)
        assert choice.path is None
        assert said in choice.sentence


@pytest.mark.parametrize("status", [404, 401])
async def test_a_catalog_s_draft_that_the_hub_does_not_give_is_left_out(world: World, status: int) -> None:
    world.hub.listing_faults.append(Fault(status=status))
    choice = await world.find(DraftFlags())
    assert choice.path is None
    assert choice.sentence.startswith(f"big runs without a draft; {DRAFT.name}: ")
    assert (await world.find(DraftFlags())).path is not None  # the next start has it


async def test_a_catalog_s_draft_with_another_vocabulary_is_left_out(world: World) -> None:
    world.hub.repos[DRAFT.repo] = {DRAFT.file: world.other.read_bytes()}
    choice = await world.find(DraftFlags())
    assert (choice.path, choice.need_bytes) == (None, 0)
    assert "different tokens" in choice.sentence


async def test_a_catalog_s_draft_that_is_no_model_is_left_out(world: World) -> None:
    world.hub.repos[DRAFT.repo] = {DRAFT.file: b"no model" * 100}
    choice = await world.find(DraftFlags())
    assert choice.path is None
    assert "not a usable GGUF file" in choice.sentence


async def test_a_slow_hub_holds_a_model_up_for_so_long_and_no_longer_and_the_fetch_goes_on(world: World) -> None:
    world.drafter = world.make_drafter(wait_s=0.05)
    world.hub.file_faults.append(Fault(stall_after=100_000))
    first = await world.find(DraftFlags())
    assert first.path is None
    assert "still being fetched" in first.sentence
    await asyncio.to_thread(world.hub.stalled.wait, DEADLINE_S)
    seen = list(world.seen)
    second = await world.find(DraftFlags())
    assert "still being fetched" in second.sentence
    assert len(world.hub.body_requests()) == 1  # the second waited for the same fetch
    world.hub.resume.set()
    async with asyncio.timeout(DEADLINE_S):
        while (choice := await world.find(DraftFlags())).path is None:
            assert "still being fetched" in choice.sentence
    assert choice.path.read_bytes() == world.small.read_bytes()
    assert world.seen == seen  # nobody who no longer waited was told


async def test_a_model_that_is_unloaded_ends_the_wait_and_the_fetch(world: World) -> None:
    world.hub.file_faults.append(Fault(stall_after=100_000))
    finding = asyncio.ensure_future(world.find(DraftFlags()))
    await asyncio.to_thread(world.hub.stalled.wait, DEADLINE_S)
    world.stop.set()
    world.hub.resume.set()
    with pytest.raises(DownloadStopped):
        await finding


async def test_an_engine_that_cannot_draft_fetches_nothing(world: World) -> None:
    choice = await world.find(DraftFlags(), engine=OLD_ENGINE)
    assert choice.path is None
    assert "agentmesh engine install" in choice.sentence
    assert not world.hub.requests
    with pytest.raises(EngineTooOld):
        await world.find(DraftFlags(draft=str(world.small)), engine=OLD_ENGINE)


# ------------------------------------------------------------------ the user's


async def test_a_named_draft_may_be_a_path_a_repository_or_a_catalog_name(world: World) -> None:
    for name in (str(world.small), REPO, f"{REPO}/Small-Q8_0.gguf", "0.5b"):
        choice = await world.find(DraftFlags(draft=name), is_split=False)
        assert choice.path is not None, name
        assert choice.path.read_bytes() == world.small.read_bytes()
        assert choice.named


MISSING: list[tuple[str, type[AgentMeshError]]] = [
    ("/nowhere/x.gguf", ModelFileUnusable),
    ("no-such-model", UnknownModel),
    ("maker/Nothing-GGUF", HubNotFound),
    ("a b/c", InvalidInput),
]


@pytest.mark.parametrize(("name", "error"), MISSING)
async def test_a_named_draft_that_is_not_there_is_an_error_at_once_and_later(
    world: World, name: str, error: type[AgentMeshError]
) -> None:
    for attempt in (world.drafter.admit(DraftFlags(draft=name), world.stop), world.find(DraftFlags(draft=name))):
        with pytest.raises(error) as caught:
            await attempt
        assert name in caught.value.message
        assert "--no-draft" in caught.value.message


async def test_what_is_admitted_is_not_fetched_yet(world: World) -> None:
    await world.drafter.admit(DraftFlags(draft=REPO), world.stop)
    await world.drafter.admit(DraftFlags(), world.stop)
    assert not world.hub.body_requests()
    with pytest.raises(InvalidInput):
        await world.drafter.admit(DraftFlags(draft_max=65), world.stop)


async def test_a_named_draft_that_cannot_be_downloaded_is_an_error(world: World) -> None:
    world.hub.file_faults.extend(Fault(flip_byte=5000) for _ in range(9))
    with pytest.raises(HubError, match="--no-draft"):
        await world.find(DraftFlags(draft=REPO))


async def test_a_named_draft_with_another_vocabulary_is_refused(world: World) -> None:
    with pytest.raises(
        InvalidInput, match=r"cannot draft for big: their vocabularies have different tokens.*--no-draft"
    ):
        await world.find(DraftFlags(draft=str(world.other)))


async def test_a_model_does_not_draft_for_itself(world: World, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(world.target)
    for path in (world.target, link):
        with pytest.raises(InvalidInput, match="the model itself"):
            await world.find(DraftFlags(draft=str(path)))


async def test_a_model_that_reads_pictures_gets_none(world: World) -> None:
    find, flags = world.drafter.find, DraftFlags(draft=str(world.small))
    with pytest.raises(InvalidInput, match="pictures"):
        await find(flags, "m", None, world.target, engine=ENGINE, is_split=True, stop=world.stop, has_projector=True)


async def test_a_draft_in_parts_whose_parts_are_missing_is_refused(world: World, tmp_path: Path) -> None:
    first, second, *_ = write_tiny(tmp_path / "parts.gguf", LLAMA, parts=2)
    assert (await world.find(DraftFlags(draft=str(first)))).path == first
    second.unlink()
    with pytest.raises(ModelFileUnusable, match="missing"):
        await world.find(DraftFlags(draft=str(first)))


# ------------------------------------------------------------------ what it takes, and how the engine is told


async def test_what_it_takes_grows_with_the_context_and_the_requests(world: World) -> None:
    async def need(context: int | None, slots: int | None) -> int:
        choice = await world.drafter.find(
            DraftFlags(draft=str(world.small)),
            "m",
            None,
            world.target,
            engine=ENGINE,
            is_split=True,
            stop=world.stop,
            context_tokens=context,
            slots=slots,
        )
        return choice.need_bytes

    facts = read_model(world.small).facts
    assert await need(None, None) == await need(512, 1)  # the target's own context
    assert await need(4096, 3) - await need(2048, 3) >= 3 * facts.kv_bytes(2048)
    assert await need(512, 1) > facts.weight_bytes + facts.kv_bytes(512) + PROCESS_BYTES


async def test_the_engine_is_told_to_keep_it_on_the_host(world: World) -> None:
    choice = await world.find(DraftFlags(draft=str(world.small)))
    assert draft_words(ENGINE, choice) == draft_words(ENGINE, choice, "none")
    assert draft_words(ENGINE, choice)[-4:] == ("--spec-draft-device", "none", "--spec-draft-ngl", "0")
    assert "CUDA0" in draft_words(ENGINE, choice, "CUDA0")
    left_out = choice.without("big", "it does not fit")
    assert draft_words(ENGINE, left_out) == ()
    assert left_out.sentence == f"big runs without a draft; {world.small}: it does not fit."


async def test_a_draft_that_nobody_named_gives_way_where_there_is_no_room_for_both(world: World) -> None:
    facts, wanted = read_model(world.target).facts, Wanted(context_tokens=512, slots=1)
    catalogs, named = await world.find(DraftFlags()), await world.find(DraftFlags(draft=str(world.small)))
    alone = fit_model("big", facts, wanted, [Room(None, 1 << 40, 1 << 40)]).need
    tight, ample = ([Room(None, free, free)] for free in (alone.total + 1, 2 * alone.total + catalogs.need_bytes))
    fit, choice = fit_with_draft(catalogs, "big", facts, wanted, ample)
    assert (fit.fits, fit.need.draft, choice) == (True, catalogs.need_bytes, catalogs)
    fit, choice = fit_with_draft(catalogs, "big", facts, wanted, tight)
    assert (fit.fits, fit.need.draft, choice.path) == (True, 0, None)
    assert "no room" in choice.sentence
    fit, choice = fit_with_draft(named, "big", facts, wanted, tight)
    assert (fit.fits, choice) == (False, named)
