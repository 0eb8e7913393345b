"""The model that drafts for another one: found, fetched, compared, and how the engine is told.

    drafter = Drafter(fetcher)
    await drafter.admit(flags, stop)  # what the user named is refused before anything is fetched
    choice = await drafter.find(flags, model_id, entry, first_file, engine=engine, is_split=True, stop=stop)
    words = draft_words(engine, choice, device)

Owns the fetches of the catalog's drafts, which go on when their model no longer waits for them: at most one of each draft. Owner: the
event loop. Which draft is meant, and whether it matches, is logic/drafting.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.tasks import TaskSet
from agentmesh.inference.engine.arguments import NO_DEVICE
from agentmesh.inference.engine.draft_arguments import draft_arguments
from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.fetching import DownloadStopped, Fetcher, Located
from agentmesh.inference.logic.drafting import DraftFlags, WantedDraft, obstacle, pair_draft, wanted_draft
from agentmesh.inference.logic.fit import UNKNOWN_CONTEXT_TOKENS, DraftModel, Fit, Room, Wanted, draft_bytes, fit_model
from agentmesh.inference.logic.gguf_facts import ModelFacts, model_facts
from agentmesh.inference.logic.gguf_header import BadHeader, Header
from agentmesh.inference.logic.split_limits import MAX_SPLIT_CONTEXT_TOKENS
from agentmesh.inference.logic.vocabulary import vocabulary_print
from agentmesh.inference.models.catalog import CatalogEntry
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.gguf import read_header, read_model
from agentmesh.inference.serving_types import LoadRequest, Progress
from agentmesh.inference.threads import in_daemon_thread

# 500 MB at 100 Mbit/s take 40 s; a split's own weights, which load next, take as long.
CATALOG_WAIT_S: Final = 60.0

Seen = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """The draft that was chosen, or none.

    Attributes:
        path: its (first) file; None: no draft.
        max_tokens: that it proposes at once.
        sentence: which and how, or why none; empty when nobody asked and there is nothing to say.
        need_bytes: what it takes beside its target, at the longest context that a split has and with as many requests at once as
            were asked for (else one). `model` gives logic/fit.py the exact figure: Wanted(draft=choice.model).
        id: as requests would call it.
        model: for logic/fit.py; None: no draft.
        named: by the user, so that it may not be left out without their knowing.
    """

    path: Path | None = None
    max_tokens: int = 0
    sentence: str = ""
    need_bytes: int = 0
    id: str = ""
    model: DraftModel | None = None
    named: bool = False

    def without(self, model_id: str, why: str) -> DraftChoice:
        """The choice to go without it, for a reason that is found out later (it does not fit)."""
        return _left_out(model_id, f"{self.id}: {why}")


NO_DRAFT: Final = DraftChoice()


def draft_words(engine: Engine, choice: DraftChoice, device: str | None = None) -> tuple[str, ...]:
    """The engine's options for it; none without a draft.

    Args:
        device: of the host, as `--device` takes it; None or "none": the processor. Never a worker's.

    Raises:
        EngineTooOld: the engine cannot do it; `find` has said so before.
    """
    if choice.path is None:
        return ()
    return tuple(draft_arguments(engine, choice.path, choice.max_tokens, device=device or NO_DEVICE))


class Drafter:
    """See the module."""

    def __init__(self, fetcher: Fetcher, *, catalog_wait_s: float = CATALOG_WAIT_S) -> None:
        self._fetcher = fetcher
        self._catalog_wait_s = catalog_wait_s
        self._fetches: dict[str, asyncio.Task[Path | str]] = {}  # the draft's first file, or why there is none
        self._tasks = TaskSet("drafts")

    async def close(self) -> None:
        """Forget the fetches. Their threads end with the `stop` of the models that began them."""
        await self._tasks.close()

    async def admit(self, flags: DraftFlags, stop: threading.Event) -> None:
        """Refuse early what is sure not to work: flags that contradict each other, a name that nobody knows.

        Raises:
            InvalidInput, UnknownModel, ModelFileUnusable, HubError and its kin. DownloadStopped: `stop` was set.
        """
        wanted = wanted_draft(flags, None, is_split=False)
        if wanted is not None:
            with _speaking_of(wanted.name):
                await in_daemon_thread(lambda: self._locate(wanted.name, stop), name="locate draft")

    async def find(
        self,
        flags: DraftFlags,
        model_id: str,
        entry: CatalogEntry | None,
        target: Path,
        *,
        engine: Engine,
        is_split: bool,
        stop: threading.Event,
        seen: Seen = lambda progress: None,
        has_projector: bool = False,
        context_tokens: int | None = None,
        slots: int | None = None,
    ) -> DraftChoice:
        """Which model drafts for this one.

        A draft that the user named is fetched however long that takes; `seen` is told on the loop how far it is. One of the catalog
        is waited for so long and no longer, fetched on in the background, and used at the model's next start.

        Args:
            target: the model's first file, which is here.
            has_projector: the model is served with it.
            context_tokens, slots: what the user asked for.

        Raises:
            InvalidInput, UnknownModel, ModelFileUnusable, EngineTooOld, NoSpace, HubError and its kin: the user named a draft that
                cannot be had or cannot draft for this model. DownloadStopped: `stop` was set.
        """
        wanted = wanted_draft(flags, entry.draft if entry is not None else None, is_split=is_split)
        if wanted is None:
            why = "the catalog knows none for it; name one with --draft"
            return _left_out(model_id, why) if flags.draft_max is not None else NO_DRAFT
        asked = _Asked(wanted, model_id, target, has_projector, context_tokens, slots)
        if wanted.named:
            with _speaking_of(wanted.name):
                draft_arguments(engine, target, wanted.max_tokens)  # whether it can at all; nothing is fetched in vain
                path = await in_daemon_thread(self._fetch_telling(wanted.name, stop, seen), name="fetch draft")
            return await in_daemon_thread(lambda: _compare(asked, path), name="check draft")
        try:
            draft_arguments(engine, target, wanted.max_tokens)
            found = await self._catalog_draft(wanted.name, stop, seen)
            if isinstance(found, str):
                return _left_out(model_id, f"{wanted.name}: {found}")
            return await in_daemon_thread(lambda: _compare(asked, found), name="check draft")
        except AgentMeshError as error:
            return _left_out(model_id, f"{wanted.name}: {error.message}")

    # ------------------------------------------------------------------ inside

    async def _catalog_draft(self, name: str, stop: threading.Event, seen: Seen) -> Path | str:
        """Its first file, or why there is none now. Two models that want the same one wait for the same fetch."""
        is_waiting = True

        def tell(progress: Progress) -> None:
            if is_waiting:
                seen(progress)

        fetch = self._fetches.get(name)
        if fetch is None or fetch.done():
            fetch = self._tasks.spawn(self._fetch_quietly(name, stop, tell), name=name)
            self._fetches[name] = fetch
        try:
            await asyncio.wait({fetch}, timeout=self._catalog_wait_s)
        finally:
            is_waiting = False
        if stop.is_set():
            raise DownloadStopped
        return fetch.result() if fetch.done() else "it is still being fetched, and used when the model is started again"

    async def _fetch_quietly(self, name: str, stop: threading.Event, seen: Seen) -> Path | str:
        try:
            return await in_daemon_thread(self._fetch_telling(name, stop, seen), name="fetch draft")
        except AgentMeshError as error:
            return error.message
        except DownloadStopped:
            return "its download was broken off; it goes on when the model is started again"

    def _locate(self, name: str, stop: threading.Event) -> Located:
        return self._fetcher.locate(LoadRequest(name), stop)

    def _fetch_telling(self, name: str, stop: threading.Event, seen: Seen) -> Callable[[], Path]:
        """What a thread does: find it and, unless it is here, download it."""
        loop = asyncio.get_running_loop()

        def work() -> Path:
            located = self._locate(name, stop)
            if located.file is not None:
                return located.file
            plan = located.plan
            if plan is None:
                raise RuntimeError("neither here nor to be fetched")

            def told(done_bytes: int) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(seen, Progress(done_bytes, plan.size_bytes))

            return self._fetcher.fetch(plan, told, stop)[0]

        return work


def fit_with_draft(
    choice: DraftChoice, model_id: str, facts: ModelFacts, wanted: Wanted, rooms: Sequence[Room]
) -> tuple[Fit, DraftChoice]:
    """Where the model fits with its draft; without it where it fits no other way and the draft was not named by the user."""
    fit = fit_model(model_id, facts, replace(wanted, draft=choice.model), rooms)
    if fit.fits or choice.model is None or choice.named:
        return fit, choice
    alone = fit_model(model_id, facts, replace(wanted, draft=None), rooms)
    if not alone.fits:
        return alone, choice
    return alone, choice.without(model_id, f"there is no room for it: {fit.sentence}")


@dataclass(frozen=True, slots=True)
class _Asked:
    wanted: WantedDraft
    model_id: str
    target: Path
    has_projector: bool
    context_tokens: int | None
    slots: int | None


def _compare(asked: _Asked, path: Path) -> DraftChoice:
    """In a thread: whether the file can draft for the target, and what that takes."""
    target_header = read_header(asked.target)
    target = _facts(asked.target, target_header)
    draft, draft_header = read_model(path), read_header(path)
    hindered = obstacle(target, draft.facts, has_projector=asked.has_projector)
    if path.resolve() == asked.target.resolve():
        hindered = "it is the model itself; a draft is a smaller one"
    pairing = pair_draft(
        asked.wanted, asked.model_id, vocabulary_print(target_header), vocabulary_print(draft_header), hindered
    )
    if not pairing.used:
        return DraftChoice(sentence=pairing.sentence)
    model = DraftModel(draft.facts, pairing.max_tokens)
    context = asked.context_tokens or min(target.context_length or UNKNOWN_CONTEXT_TOKENS, MAX_SPLIT_CONTEXT_TOKENS)
    need = draft_bytes(model, target.vocabulary.size, context, asked.slots or 1)
    return DraftChoice(path, pairing.max_tokens, pairing.sentence, need, asked.wanted.name, model, asked.wanted.named)


def _facts(path: Path, header: Header) -> ModelFacts:
    try:
        return model_facts((header,))
    except BadHeader as error:
        raise ModelFileUnusable(f"{path} is not a usable GGUF file: {error}.") from error


def _left_out(model_id: str, why: str) -> DraftChoice:
    return DraftChoice(sentence=f"{model_id} runs without a draft; {why.removesuffix('.')}.")


@contextlib.contextmanager
def _speaking_of(name: str) -> Generator[None]:
    """Errors say that they are about the draft, not the model."""
    try:
        yield
    except AgentMeshError as error:
        raise type(error)(f"The draft '{name}' cannot be had: {error.message} --no-draft goes without.") from error
