"""This node's own shard of a mixture of experts: chosen from a plan's outcome, written, and found again.

    made = await ShardMaker.of_home(home).make(outcome, me, files, model_id)      # made.path is a model that any llama.cpp runs

Owns which ranking is used, and which shards of older plans are deleted. The files are models/shard_store.py's, what goes into them is
logic/moe.py's. State: none but the disk's. Blocks no loop: all of it runs in a daemon thread, which a cancelled caller stops at its next
piece. docs/expert-shards.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentmesh.core.errors import AgentMeshError
from agentmesh.core.paths import Home
from agentmesh.inference.logic.model_files import model_id
from agentmesh.inference.logic.moe import (
    SOURCE_NONE,
    MoePlan,
    NodeShard,
    NotPlannable,
    Ranking,
    plan_outcome,
    rank,
    ranking_digest,
    routing_share,
)
from agentmesh.inference.logic.shard_name import ShardName
from agentmesh.inference.logic.split_values import Shards
from agentmesh.inference.models.download import size_text
from agentmesh.inference.models.errors import NoSpace
from agentmesh.inference.models.expert_ranking import UNRANKED, ExpertCounts, RememberedCounts, beside
from agentmesh.inference.models.identity import FileIdentities
from agentmesh.inference.models.shard import ShardProgress, SplitModel, read_expert_model
from agentmesh.inference.models.shard_hub import RangeSource, RemoteModel, fetch_shard
from agentmesh.inference.models.shard_store import ShardRecord, ShardStore, source_digest
from agentmesh.inference.threads import in_daemon_thread

TELL_S: Final = 1.0  # between two sentences of progress
MARK: Final = "made-by-a-node"  # a file beside a shard that nobody asked for by name: the next plan's takes its place

Say = Callable[[str], None]


class ShardRefused(AgentMeshError):
    """The plan cannot be carried out with this model's files."""


@dataclass(frozen=True, slots=True)
class ShardMade:
    """A shard on disk.

    Attributes:
        path: of its file, whose stem is the whole model's id.
        key: of content and experts, as shard_store has it.
        name: for ServedModel.shard.
        routing_share: the part of the counted choices that falls on its experts, 0 to 1; None: nothing was counted.
        left_out: experts of each layer that are on no node, for want of room.
        source_sha256: of the whole model's first file, for ServedModel.sha256.
        sentence: what status says of it.
    """

    path: Path
    key: str
    name: ShardName
    routing_share: float | None
    left_out: int
    size_bytes: int
    sha256: str
    source_sha256: str
    sentence: str

    @property
    def kept_of(self) -> str:
        """For people: "64 of 128"."""
        return self.name.kept_of

    @property
    def ranked(self) -> bool:
        return self.routing_share is not None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a caller wants."""

    outcome: Shards
    me: bytes
    files: Sequence[Path] | RemoteModel
    model_id: str
    min_experts: int


@dataclass(frozen=True, slots=True)
class _Work:
    """What comes of it."""

    model: SplitModel | RemoteModel
    source: str
    counts: ExpertCounts
    ranking: Ranking
    plan: MoePlan
    shard: NodeShard


class ShardMaker:
    """See the module. Calls for different models may run at once; two for the same shard wait for each other.

    Args:
        hub: of whom a model that is not on this machine is asked for, by ranges.
    """

    def __init__(
        self,
        store: ShardStore,
        remembered: RememberedCounts,
        identities: FileIdentities,
        hub: RangeSource | None = None,
    ) -> None:
        self._store = store
        self._remembered = remembered
        self._identities = identities
        self._hub = hub

    @classmethod
    def of_home(cls, home: Home, hub: RangeSource | None = None) -> ShardMaker:
        return cls(ShardStore.of_home(home), RememberedCounts.of_home(home), FileIdentities.of_home(home), hub)

    async def make(
        self,
        outcome: Shards,
        me: bytes,
        files: Sequence[Path] | RemoteModel,
        model_id: str,
        *,
        min_experts: int = 0,
        say: Say = lambda _sentence: None,
    ) -> ShardMade:
        """This node's shard, written unless it is there. Shards that older plans made of this model are deleted.

        Args:
            files: of the whole model, the first part first; or what shard_hub.read_remote_model knows of one that is not here.
            min_experts: the wish of that name, with which the outcome was planned.
            say: told how far it is, on this loop.

        Raises:
            ShardRefused: the outcome is of another model, or has no part for this node.
            ModelFileUnusable, HubError and its kin: the model cannot be read or cut. NoSpace, StorageError: the disk does not take it.
        """
        asked = _Asked(outcome, me, files, model_id, min_experts)
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def tell(sentence: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: None if stop.is_set() else say(sentence))

        try:
            return await in_daemon_thread(lambda: self._make(asked, tell, stop), name="make shard")
        finally:
            stop.set()

    def _make(self, asked: _Asked, tell: Say, stop: threading.Event) -> ShardMade:
        tell(f"Reading {asked.model_id}, to know it by its content.")
        work = self._prepare(asked, stop)
        progress = _Progress(f"{work.shard.expert_count} of {asked.outcome.expert_count} experts a layer", tell, stop)
        try:
            record = self._write(work, progress)
        except NoSpace:
            if not self._forget_others(work.source, ""):
                raise
            record = self._write(work, progress)
        self._forget_others(work.source, record.key, mark=progress.has_begun)
        return self._made(work, record)

    def _prepare(self, asked: _Asked, stop: threading.Event) -> _Work:
        files = asked.files
        model = files if isinstance(files, RemoteModel) else read_expert_model(files[0])
        experts = model.experts
        remote = isinstance(model, RemoteModel)
        source = model.source if remote else source_digest(model.files, self._identities, stop)
        published = None if remote else beside(model.files, experts)
        counts = published or self._remembered.recall(source, experts) or UNRANKED
        ranking = rank(counts.layers, experts.layers, experts.expert_count, counts.source)
        try:
            plan = plan_outcome(asked.outcome, asked.me, ranking, experts.used_count, asked.min_experts)
        except NotPlannable as error:
            raise ShardRefused(f"{asked.model_id} cannot be shared by experts as planned: {error}") from error
        shard = next(one for one in plan.shards if one.name == asked.me.hex())
        return _Work(model, source, counts, ranking, plan, shard)

    def _write(self, work: _Work, progress: ShardProgress) -> ShardRecord:
        model, kept = work.model, work.shard.kept
        if isinstance(model, SplitModel):
            return self._store.make(model, work.source, kept, progress)
        hub = self._hub
        if hub is None:
            raise ShardRefused(f"'{model.files[0].path}' is not on this machine. Download it first.")
        return self._store.keep(
            model_id(model.files[0].path),
            model.experts,
            work.source,
            kept,
            lambda target: fetch_shard(model, hub, kept, target, progress),
        )

    def _forget_others(self, source: str, kept_key: str, *, mark: bool = False) -> int:
        """Delete what other plans made of this model; returns how many. What `agentmesh moe split` wrote stays."""
        if mark:
            with contextlib.suppress(OSError):
                (self._store.folder / kept_key / MARK).touch()
        others = [
            record
            for record in self._store.records()
            if record.source == source and record.key != kept_key and (self._store.folder / record.key / MARK).exists()
        ]
        for record in others:
            self._store.remove(record)
        return len(others)

    def _made(self, work: _Work, record: ShardRecord) -> ShardMade:
        experts, held = work.model.experts, work.shard.expert_count
        ranked = work.counts.source != SOURCE_NONE
        share = routing_share(work.counts.layers, experts.layers, work.shard.kept) if ranked else None
        left_out = len(work.plan.left_out)
        return ShardMade(
            path=self._store.path(record),
            key=record.key,
            name=ShardName(held, experts.expert_count, ranking_digest(work.ranking)),
            routing_share=share,
            left_out=left_out,
            size_bytes=record.size_bytes,
            sha256=record.sha256,
            source_sha256=self._first_sha256(work.model),
            sentence=_sentence(held, experts.expert_count, record.size_bytes, share, left_out),
        )

    def _first_sha256(self, model: SplitModel | RemoteModel) -> str:
        if isinstance(model, RemoteModel):
            return model.files[0].sha256 or ""
        return self._identities.identify_now(model.files[0]).sha256


class _Progress:
    """Tells how far the writing is, and breaks it off when nobody waits for it any more: nothing is left of it then."""

    def __init__(self, what: str, tell: Say, stop: threading.Event) -> None:
        self.has_begun = False
        self._what = what
        self._tell = tell
        self._stop = stop
        self._told_s = float("-inf")

    def __call__(self, done_bytes: int, whole_bytes: int) -> None:
        """See ShardProgress."""
        self.has_begun = True
        if self._stop.is_set():
            raise ShardRefused("Nobody waits for this shard any more.")
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            percent = 100 * done_bytes // max(whole_bytes, 1)
            self._tell(f"Writing its shard: {self._what}, {percent} % of {size_text(whole_bytes)}.")


def _sentence(held: int, whole: int, size_bytes: int, share: float | None, left_out: int) -> str:
    text = f"It holds {held} of {whole} experts a layer ({size_text(size_bytes)})"
    if share is None:
        text += ", in the file's order: nothing was counted, which is as good as chance; see 'agentmesh moe rank'."
    else:
        text += f", {share:.0%} of the counted routing."
    if left_out:
        text += f" {left_out} of {whole} experts a layer find no room on any node."
    return text
