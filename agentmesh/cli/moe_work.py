"""What the commands of `agentmesh moe` do with one model, step by step, and the line of progress while a part is written.

Imports of inference are inside the functions: the command line stays light.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from agentmesh.cli.output import note, safe_line
from agentmesh.core.errors import InvalidInput
from agentmesh.core.paths import Home

if TYPE_CHECKING:
    from agentmesh.inference.logic.moe import Kept, MoePlan, NodeRoom, Ranking
    from agentmesh.inference.models.expert_ranking import ExpertCounts
    from agentmesh.inference.models.hub import Hub
    from agentmesh.inference.models.shard import ShardFile, ShardProgress, SplitModel
    from agentmesh.inference.models.shard_hub import RemoteModel

REDRAW_S: Final = 0.1
STEPS: Final = 10


class ModelWork:
    """One model, and what is done with it."""

    def __init__(self, name: str) -> None:
        from agentmesh.inference.logic.model_files import model_id
        from agentmesh.inference.models.shard import read_expert_model

        self.home = Home.from_environment()
        self.name = name
        path = _installed(name)
        self.model: SplitModel | RemoteModel = _on_hub(name) if path is None else read_expert_model(path)
        first = self.model.files[0]
        self.id = model_id(first.name if isinstance(first, Path) else first.path)
        self.experts = self.model.experts
        self.count = self.experts.expert_count
        self._source = ""
        if path is None:
            note(f"{self.id} is not on this machine; only what is needed of it is fetched")

    @property
    def source(self) -> str:
        """The model's content by hash: a minute for 40 GB the first time."""
        if not self._source:
            from agentmesh.inference.models.identity import FileIdentities
            from agentmesh.inference.models.shard_hub import RemoteModel
            from agentmesh.inference.models.shard_store import source_digest

            model = self.model
            remote = isinstance(model, RemoteModel)
            self._source = model.source if remote else source_digest(model.files, FileIdentities.of_home(self.home))
        return self._source

    def known_counts(self, imatrix: Path | None) -> ExpertCounts:
        """What the user gives or was measured before; nothing is run."""
        from agentmesh.inference.models.expert_ranking import UNRANKED, RememberedCounts, beside, from_imatrix
        from agentmesh.inference.models.shard import SplitModel

        if imatrix is not None:
            return from_imatrix(imatrix, self.experts)
        if isinstance(self.model, SplitModel) and (published := beside(self.model.files, self.experts)) is not None:
            return published
        remembered = RememberedCounts.of_home(self.home)
        return (remembered.recall(self.source, self.experts) if remembered.any() else None) or UNRANKED

    def counts(self, imatrix: Path | None, bin_dir: Path | None, *, again: bool = False) -> ExpertCounts:
        """The same, and measured now when it must be and an engine can."""
        from agentmesh.inference.logic.moe import SOURCE_NONE
        from agentmesh.inference.models.expert_ranking import RememberedCounts, calibrate
        from agentmesh.inference.models.shard_hub import RemoteModel

        known = self.known_counts(imatrix)
        if imatrix is not None or (known.source != SOURCE_NONE and not again):
            return known
        if isinstance(self.model, RemoteModel):
            note(
                "a model that is not on this machine cannot be measured; --imatrix takes counts that somebody else has"
            )
            return known
        program = _imatrix_program(self.home, bin_dir)
        if program is None:
            note("no engine with llama-imatrix is here, so nothing is measured: agentmesh engine install")
            return known
        note(f"measuring which experts are used, with {program}; this loads the whole model")
        measured = calibrate(program, self.model, os.environ)
        RememberedCounts.of_home(self.home).remember(self.source, measured)
        return measured

    def ranking(self, counts: ExpertCounts) -> Ranking:
        from agentmesh.inference.logic.moe import rank

        return rank(counts.layers, self.experts.layers, self.count, counts.source)

    def minimum(self, asked: int | None) -> int:
        """Raises: InvalidInput: more are asked for than there are, or fewer than a token uses."""
        from agentmesh.inference.logic.moe import minimum_experts

        if asked is not None:
            self.check_experts(asked)
        return minimum_experts(self.count, self.experts.used_count, asked or _catalog_minimum(self.id))

    def check_experts(self, asked: int) -> int:
        """Raises: InvalidInput: the model has not so many, or uses more for a single token."""
        used = self.experts.used_count
        if not used <= asked <= self.count:
            raise InvalidInput(
                f"The model uses {used} of {self.count} experts for a token; choose from {used} to {self.count}."
            )
        return asked

    def rooms(self, nodes: int, max_gb: str | None) -> list[NodeRoom]:
        from agentmesh.cli.node import parse_gigabytes
        from agentmesh.inference.logic.moe import NodeRoom

        experts = self.experts
        most = None if max_gb is None else experts.experts_in(parse_gigabytes(max_gb))
        width = len(str(nodes))
        return [NodeRoom(f"node {number:>{width}}", most) for number in range(1, nodes + 1)]

    def plan(self, ranking: Ranking, rooms: Sequence[NodeRoom], minimum: int) -> MoePlan:
        """Raises: InvalidInput: the nodes have not the room."""
        from agentmesh.inference.logic.moe import NotPlannable, plan_shards

        try:
            return plan_shards(ranking, rooms, minimum)
        except NotPlannable as error:
            raise InvalidInput(f"{error} Name more memory (--max-gb), or fewer experts (--min-experts).") from error

    def parts(
        self,
        counts: ExpertCounts,
        nodes: int,
        node: int | None,
        experts: int | None,
        minimum: int | None,
        max_gb: str | None,
    ) -> list[tuple[str | None, Kept]]:
        """(node, experts) of each part that is to be written."""
        from agentmesh.inference.logic.moe import most_used

        ranking = self.ranking(counts)
        if experts is not None:
            return [(None, most_used(ranking, experts))]
        shards = self.plan(ranking, self.rooms(nodes, max_gb), self.minimum(minimum)).shards
        chosen = shards if node is None else (shards[node - 1],)
        return [(shard.name, shard.kept) for shard in chosen]

    def write(self, kept: Kept, output: Path | None, what: str) -> dict[str, Any]:
        """The part, in the home's shards or in a folder of the user's. `what`: what its progress is called."""
        from agentmesh.inference.models.shard_store import ShardStore, shard_key

        with WriteProgress(what) as progress:
            if output is None:
                store = ShardStore.of_home(self.home)
                record = store.keep(
                    self.id, self.experts, self.source, kept, lambda target: self._write_to(target, kept, progress)
                )
                path, size, sha256 = store.path(record), record.size_bytes, record.sha256
            else:
                name = f"{self.id}-{len(kept[0])}of{self.count}-{shard_key(self.source, kept)[:8]}.gguf"
                done = self._write_to(output / name, kept, progress)
                path, size, sha256 = done.path, done.size_bytes, done.sha256
        return {"path": str(path), "size_bytes": size, "sha256": sha256, "experts": len(kept[0])}

    def _write_to(self, target: Path, kept: Kept, progress: ShardProgress) -> ShardFile:
        from agentmesh.inference.models.shard import LocalParts, layout_of, write_shard
        from agentmesh.inference.models.shard_hub import RemoteModel, fetch_shard

        if isinstance(self.model, RemoteModel):
            return fetch_shard(self.model, _hub(), kept, target, progress)
        with LocalParts.open(self.model.files) as parts:
            layout = layout_of(self.model.headers, self.experts, parts, kept, self.source)
            return write_shard(layout, parts, target, check=parts.check_unchanged, progress=progress)

    def rows(self, plan: MoePlan, counts: ExpertCounts) -> list[dict[str, Any]]:
        """A row a node."""
        from agentmesh.inference.logic.moe import routing_share

        experts = self.experts
        return [
            {
                "node": shard.name,
                "experts": shard.expert_count,
                "own_experts": shard.expert_count - plan.core_count,
                "weight_bytes": experts.shard_bytes(shard.expert_count),
                "routing_share": routing_share(counts.layers, experts.layers, shard.kept),
                "kept": [list(kept) for kept in shard.kept],
            }
            for shard in plan.shards
        ]

    def summary(self, counts: ExpertCounts) -> dict[str, Any]:
        """What holds for the model."""
        experts = self.experts
        return {
            "model": self.id,
            "architecture": experts.architecture,
            "experts": experts.expert_count,
            "experts_used": experts.used_count,
            "expert_layers": len(experts.layers),
            "weight_bytes": experts.shard_bytes(experts.expert_count),
            "shared_bytes": experts.shared_bytes,
            "ranked_by": counts.source,
        }

    def show_summary(self, counts: ExpertCounts) -> None:
        from agentmesh.inference.models.download import size_text

        row = self.summary(counts)
        click.echo(
            safe_line(
                f"{row['model']}  {row['architecture']}, {row['experts']} experts in {row['expert_layers']} layers, "
                f"{row['experts_used']} used for a token; {size_text(row['weight_bytes'])}, "
                f"{size_text(row['shared_bytes'])} of it shared"
            )
        )
        self.say_source(counts)

    def must_be_ranked(self, counts: ExpertCounts) -> None:
        """Raises: InvalidInput: nothing was counted."""
        from agentmesh.inference.logic.moe import SOURCE_NONE

        if counts.source == SOURCE_NONE:
            raise InvalidInput(
                f"Nobody knows which experts of {self.name} are used: nothing could be measured, and no counts were given "
                "(--imatrix FILE)."
            )

    def say_source(self, counts: ExpertCounts) -> None:
        """Say when nothing is known of the experts' use."""
        from agentmesh.inference.logic.moe import SOURCE_NONE

        if counts.source == SOURCE_NONE:
            note(
                "the experts are unranked: the file's order is taken, which is as good as chance. "
                f"'agentmesh moe rank {self.name}' measures, --imatrix takes counts that you have"
            )

    def line(self, row: dict[str, Any]) -> str:
        from agentmesh.inference.models.download import size_text

        share = row["routing_share"]
        known = "" if share is None else f", {share:.1%} of the routing"
        size = size_text(row["weight_bytes"])
        return f"{row['node']:<8} {row['experts']:>4} of {self.count} experts, {row['own_experts']} its own, {size:>9}{known}"


def _installed(name: str) -> Path | None:
    from agentmesh.inference.logic.reference import parse_reference
    from agentmesh.inference.models.cache import HubCache
    from agentmesh.inference.models.local import find_local
    from agentmesh.inference.models.settings import HubSettings

    settings = HubSettings.from_environment()
    return find_local(parse_reference(name, settings.endpoint), HubCache(settings.cache))


def _on_hub(name: str) -> RemoteModel:
    """The headers of a model that is not here."""
    from agentmesh.inference.logic.reference import parse_reference
    from agentmesh.inference.models.download import plan
    from agentmesh.inference.models.shard_hub import read_remote_model

    hub = _hub()
    return read_remote_model(plan(parse_reference(name, hub.settings.endpoint), hub).model, hub)


def _hub() -> Hub:
    from agentmesh.inference.models.hub import Hub
    from agentmesh.inference.models.settings import HubSettings

    return Hub(HubSettings.from_environment())


def _catalog_minimum(name: str) -> int | None:
    from agentmesh.inference.models.catalog import catalog

    return next((entry.minimum_experts for entry in catalog() if entry.id == name), None)


def _imatrix_program(home: Home, bin_dir: Path | None) -> Path | None:
    from agentmesh.inference.engine.engine import EngineSearch
    from agentmesh.inference.engine.locate import find_engines

    found = find_engines(EngineSearch(bin_dir, home, None, dict(os.environ)))
    return next((engine.imatrix for engine in found if engine.imatrix is not None), None)


class WriteProgress:
    """One line on stderr that moves in a terminal, a line every tenth elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._drawn = 0.0
        self._step = -1

    def __enter__(self) -> ShardProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._drawn:
            print(file=sys.stderr, flush=True)

    def __call__(self, done_bytes: int, whole_bytes: int) -> None:
        from agentmesh.inference.models.download import size_text

        text = f"{self._what}: {100 * done_bytes // max(whole_bytes, 1)} %, {size_text(done_bytes)} of {size_text(whole_bytes)}"
        now, step = time.monotonic(), STEPS * done_bytes // max(whole_bytes, 1)
        if self._terminal and (now - self._drawn >= REDRAW_S or done_bytes == whole_bytes):
            self._drawn = now
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif not self._terminal and step > self._step:
            self._step = step
            print(text, file=sys.stderr, flush=True)
