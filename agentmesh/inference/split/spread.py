"""Models of this node that are to be spread over the mesh: each is told as wanted, follows the plan, and runs what it says here.

    spreader = Spreader(me, offers, ...)
    await spreader.follow(run, flags)        # until it is cancelled: the model is unloaded then

Owns what is followed; decisions are split/driver.py's, runs split/running.py's, records split/offers.py's. docs/splits.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.logic.advice import advise
from agentmesh.inference.logic.doubts import doubt_line, doubt_text, with_doubts
from agentmesh.inference.logic.engine_end import without_log
from agentmesh.inference.logic.expert_tensors import why_uncut
from agentmesh.inference.logic.keeping import better, broken
from agentmesh.inference.logic.model_parts import model_parts
from agentmesh.inference.logic.plan import make_plan, plan_digest
from agentmesh.inference.logic.replan import State
from agentmesh.inference.logic.shard_name import ranking_warning
from agentmesh.inference.logic.split_offer import WantedModel, content_of
from agentmesh.inference.logic.split_values import (
    NO_RPC_VERSION,
    Claim,
    NodeFacts,
    Outcome,
    PlanModel,
    Shards,
    Solo,
    Split,
    Wait,
    Way,
    Wish,
    short_id_text,
)
from agentmesh.inference.logic.target import Target
from agentmesh.inference.logic.wishes import agreed_wish
from agentmesh.inference.memory import MemoryBook
from agentmesh.inference.model_run import ModelRun
from agentmesh.inference.models.gguf import read_header
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.serving_types import DoubtRow, ModelState, SplitFlags, SpreadView
from agentmesh.inference.split.driver import SplitDriver
from agentmesh.inference.split.host import HostParts, WorkerStatus
from agentmesh.inference.split.parts import Tells
from agentmesh.inference.split.running import Held, PlanRunner
from agentmesh.inference.split.shards import ShardMaker
from agentmesh.inference.threads import in_daemon_thread
from agentmesh.mesh.identity import decode_id, encode_id

_log = logging.getLogger(__name__)

MAX_ADVICE: Final = 4
MAX_DOUBTS_TOLD: Final = 3  # in the reason for a state; status has all


class Offers(Tells, Protocol):
    """This node's record and what others say. split/offers.py: SplitOffers."""

    def nodes(self, content: str) -> tuple[NodeFacts, ...]: ...

    def wishes(self, content: str) -> Mapping[bytes, Wish]: ...

    def same_name(self, model_id: str, content: str) -> Sequence[str]: ...

    def on_change(self, listener: Callable[[], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class SpreadParts:
    """What all spread models of a node share. `make_way`: ends what this node computes for an older host of a model (content, term).
    `hosts`: of the model with that id, those that can be reached, this node among them."""

    host: HostParts
    memory: MemoryBook
    identities: FileIdentities
    shards: ShardMaker
    say: Callable[[str], None]
    make_way: Callable[[str, int], None] = lambda _content, _term: None
    hosts: Callable[[str], Iterable[Target]] = lambda _model_id: ()


class Spreader:
    """See the module."""

    def __init__(self, me: bytes, offers: Offers, parts: SpreadParts) -> None:
        self._me = me
        self._offers = offers
        self._parts = parts
        self._followed: dict[str, _Followed] = {}
        self._hashing = asyncio.Lock()  # one model at a time: a disk has one head, or as good as
        offers.on_change(self._offers_changed)

    async def follow(self, run: ModelRun, flags: SplitFlags) -> None:
        """Follow the mesh's plans for a model whose files are here; its state and view are kept true. Ends by being cancelled.

        Raises:
            InvalidInput: the flags name no node; or the same files are followed already, under another name.
            ModelFileUnusable: its files changed or cannot be read.
        """
        wish = _wish(run, flags)
        if run.engine is not None and run.engine.is_embedded:
            self._parts.say(
                f"{run.id}: the embedded engine cannot share models with other nodes; it serves what fits here alone. "
                "For a split, run: agentmesh engine install"
            )
        run.set_state(ModelState.LOADING, "Its files are being identified.")
        model, uncut = await self._identify(run)
        if uncut and wish.way == Way.ANY:
            self._parts.say(f"{run.id} is shared by layers, not by experts: {uncut}.")
            wish = msgspec.structs.replace(wish, way=Way.LAYERS)
        await run.find_draft()
        projector_bytes = run.files.projector_bytes if run.files is not None else 0
        # One node goes without a draft that does not fit beside the model, unless the user named it.
        alone = projector_bytes + (run.draft.need_bytes if run.draft.named else 0)
        both = run.draft.need_bytes + projector_bytes
        wish = msgspec.structs.replace(wish, host_extra_bytes=both, alone_extra_bytes=alone)
        content = model.files[0]
        if content in self._followed:
            raise InvalidInput(f"{self._followed[content].run.id} has the same files, and is spread already.")
        followed = _Followed(run, model, wish, self._me, self._offers, self._parts)
        self._followed[content] = followed
        try:
            await followed.follow()
        finally:
            del self._followed[content]
            self._offers.unwant(content)

    def hosts_changed(self) -> None:
        """Other nodes answer for models now, or do not any more."""
        for followed in self._followed.values():
            followed.hosts_changed()

    def workers(self) -> list[tuple[str, WorkerStatus]]:
        """(model, worker) of every split that this node hosts."""
        return [(one.run.id, worker) for one in self._followed.values() for worker in one.workers()]

    async def _identify(self, run: ModelRun) -> tuple[PlanModel, str]:
        """The model, and why it cannot be cut by experts if it has any."""
        if run.files is None:
            raise RuntimeError("a model without files cannot be spread")
        files = run.files.model
        async with self._hashing:
            digests = [(await self._parts.identities.identify(file)).sha256 for file in files.files]
        run.sha256 = digests[0]
        headers = await in_daemon_thread(lambda: [read_header(file) for file in files.files], name="read headers")
        content = content_of([bytes.fromhex(one) for one in digests])
        uncut = why_uncut(headers) if files.facts.expert_count else ""
        return PlanModel(run.id, files.facts, model_parts(headers), (content,)), uncut

    def _offers_changed(self) -> None:
        for followed in self._followed.values():
            followed.offers_changed()


class _Followed:
    """One model: what it wants, the driver of its plans, and what status shows of it. Also the driver's Planner."""

    def __init__(
        self, run: ModelRun, model: PlanModel, wish: Wish, me: bytes, offers: Offers, parts: SpreadParts
    ) -> None:
        self.run = run
        self._model = model
        self._own_wish = self._wish = wish
        self._me = me
        self._offers = offers
        self._say = parts.say
        self._name_of = parts.host.name_of
        self._hosts = parts.hosts
        self._serving: dict[bytes, str] = {}
        self._content = content = model.files[0]
        self._claim: Claim | None = None
        self._held: Held = ()
        self._differing: tuple[str, ...] = ()
        self._advised: tuple[Outcome | None, tuple[str, ...]] = (None, ())
        self._shown: tuple[ModelState, str] | None = None
        self._is_over = False
        self._was_ready = False
        self._told = ""  # the last reason for waiting that the user was told
        self._view = run.spread = SpreadView(doubts=self._doubts)
        self._runner = runner = PlanRunner(
            run,
            self._view,
            content,
            me=me,
            parts=parts.host,
            memory=parts.memory,
            shards=parts.shards,
            hold=self._hold,
            make_way=parts.make_way,
            rpc_version=self._rpc_version,
            min_experts=lambda: self._wish.min_experts,
        )
        self._driver = SplitDriver(
            me,
            content,
            self,
            offers,
            publish=self._publish,
            run_plan=runner.run,
            reported=self._report,
            serving=lambda: self._serving,
            drain=runner.drain,
            blamed=lambda: runner.blamed,
        )

    async def follow(self) -> None:
        self._tell()
        self.offers_changed()
        self.hosts_changed()
        try:
            await self._driver.run()
        finally:
            self._is_over = True

    def offers_changed(self) -> None:
        wishes = {**self._offers.wishes(self._content), self._me: self._own_wish}
        wish, differing = agreed_wish(wishes, self._name_of)
        self._differing = (*differing, *self._offers.same_name(self._model.id, self._content))
        self._show_advice()
        if wish != self._wish:
            self._wish = wish
            self._driver.wish_changed()
        self._driver.nodes_changed()

    def hosts_changed(self) -> None:
        serving = {
            target.node: target.model.shard
            for target in self._hosts(self.run.id)
            if target.node != self._me and target.model.ready and target.model.sha256 == self.run.sha256
        }
        if serving != self._serving:
            self._serving = serving
            self._show_advice()
            self._driver.nodes_changed()

    def workers(self) -> tuple[WorkerStatus, ...]:
        """Of the split that this node hosts."""
        return self._runner.workers()

    # ------------------------------------------------------------------ what this node says

    def _publish(self, claim: Claim | None) -> None:
        self._claim = claim
        self._tell()

    def _hold(self, held: Held) -> None:
        self._held = held
        self._tell()

    def _tell(self) -> None:
        if self._is_over:  # a part that did not end in time has no say any more
            return
        self._offers.want(WantedModel(self._content, self._model.id, self._own_wish, self._claim, self._held))

    def _rpc_version(self) -> tuple[int, int, int]:
        mine = (node.rpc_version for node in self._offers.nodes(self._content) if node.node == self._me)
        return next(mine, NO_RPC_VERSION)

    # ------------------------------------------------------------------ Planner

    def plan(self, nodes: tuple[NodeFacts, ...]) -> Outcome:
        """What the mesh should do with the model."""
        return self._driver.weigh(make_plan(self._model, self._wish, nodes), is_wish=self._wish.way == Way.LAYERS)

    def digest(self, plan: Outcome) -> str:
        """Names a plan."""
        return plan_digest(plan)

    def broken(self, plan: Solo | Split, nodes: tuple[NodeFacts, ...]) -> str | None:
        """Why a plan cannot go on."""
        return broken(plan, nodes, self._name_of)

    def better(self, plan: Solo | Split, outcome: Outcome) -> str | None:
        """Why another is worth a restart."""
        return better(plan, outcome, self._wish, self._name_of)

    # ------------------------------------------------------------------ what status shows

    def _report(self) -> None:
        """Called after each step of the driver."""
        driver, view = self._driver, self._view
        if self._was_ready and not driver.is_ready and not self._is_over:
            self._say(f"{self._model.id} is not served here any more: {driver.sentence}")
        self._was_ready = driver.is_ready
        if driver.state in (State.FOLLOWING, State.CLAIMING):
            hosts = driver.hosts
            view.role = "standby" if hosts else "waiting"
            view.nodes = hosts
            outcome = driver.outcome
            planned = isinstance(outcome, Solo | Split) and outcome.host in hosts
            view.sentence = " ".join(outcome.common.reasons) if planned and outcome is not None else driver.sentence
            if hosts:
                self._show(ModelState.STANDBY, self._standby(hosts[0]))
            elif driver.failure or (driver.state is State.FOLLOWING and isinstance(driver.outcome, Wait)):
                self._show(ModelState.WAITING, self._sentence())
            else:  # it goes on by itself, and soon: requests are not told to come back much later
                self._show(ModelState.LOADING, self._sentence())
        elif driver.is_ready:
            self._advise()
        elif driver.state is State.STOPPING:
            self._show(ModelState.LOADING, driver.sentence)

    def _standby(self, host: bytes) -> str:
        name = self._name_of(host)
        if host in self._serving:
            return f"{name} hosts it."
        # With its id: claims are words, and names can be chosen by anybody.
        return f"{name} ({short_id_text(host)}) does not answer for it yet, and says that it hosts it."

    def _sentence(self) -> str:
        """The driver's, and whom its plan does without: who waits for another host, or a start, may wait because of that."""
        doubts = self._driver.passed_over()[:MAX_DOUBTS_TOLD]
        return with_doubts(self._driver.sentence, (doubt_text(one, self._name_of(one.node)) for one in doubts))

    def _doubts(self) -> tuple[DoubtRow, ...]:
        """Of now: whom this node's plans do without. Who hosts in spite of that is waited for no more."""
        hosts = self._driver.hosts
        return tuple(
            DoubtRow(
                node=encode_id(one.node),
                name=self._name_of(one.node),
                role="host" if one.as_host else "worker",
                times=one.times,
                left_s=round(one.left_ms / 1000, 1),
                why=one.why,
                sentence=doubt_line(one, self._name_of(one.node)),
            )
            for one in self._driver.doubted()
            if not (one.as_host and one.node in hosts)
        )

    def _show(self, state: ModelState, sentence: str) -> None:
        if self._shown == (state, sentence) and self.run.state == state:
            return
        waits_for = sentence if isinstance(self._driver.outcome, Wait) else ""
        why = without_log(self._driver.failure) or waits_for  # logs have times in them; nobody wants each try's
        if state is ModelState.WAITING and why and why != self._told:
            self._told = why
            self._say(f"{self._model.id} waits: {sentence}")
        self._shown = (state, sentence)
        self.run.set_state(state, sentence)

    def _advise(self) -> None:
        """Once for each plan that runs: how fast it should be, and what would be faster."""
        plan = self._driver.plan
        self._shown, self._told = None, ""
        if isinstance(plan, Shards | None):
            self._show_advice()
            return
        if plan is self._advised[0]:
            return
        nodes = self._offers.nodes(self._content)
        if not {plan.host, *(plan.workers if isinstance(plan, Split) else ())} <= {node.node for node in nodes}:
            return  # one of them is not seen now, and yet it runs; there is another look when it is back
        advice = advise(self._model, self._wish, nodes, plan)
        self._advised = (plan, advice.sentences)
        for sentence in advice.sentences:
            self._say(f"{self._model.id}: {sentence}")
        self._show_advice()

    def _show_advice(self) -> None:
        """What nodes differ about, what there is to say of shards side by side, and other ways."""
        plan, others = self._advised
        shards = [self._view.shard, *self._serving.values()] if self._view.shard else []
        warning = ranking_warning(shards)
        told = (*self._differing, *([warning] if warning else []), *(others if plan is self._driver.plan else ()))
        self._view.advice = told[:MAX_ADVICE]


def _wish(run: ModelRun, flags: SplitFlags) -> Wish:
    """Raises: InvalidInput."""
    try:
        host = decode_id(flags.host) if flags.host else b""
    except InvalidInput:
        raise InvalidInput(
            f"--host-node takes a node's id, as 'agentmesh status --json' shows it, not '{flags.host[:80]}'."
        ) from None
    return Wish(
        way=flags.way,
        tensor_split=flags.tensor_split,
        context_tokens=run.request.context_tokens,
        slots=run.request.slots,
        host=host,
        min_peers=flags.min_peers,
        min_experts=(run.located.entry.minimum_experts or 0)
        if run.located is not None and run.located.entry is not None
        else 0,
    )
