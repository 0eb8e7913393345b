"""What a part of a mixture of experts loses: perplexity of the whole model beside parts of it, experts ranked by use and not.

    python benchmarks/moe_quality.py [MODEL] [--text FILE] [--shares 0.75,0.5,0.25] [--chunks 16] [--imatrix FILE] [--bin-dir DIR]

MODEL is a GGUF file. Without one a tiny model of random weights is made: it shows that everything runs, its figures say nothing about
quality. Ranked parts keep the most used experts of each layer, unranked ones the first of the file. The text is this repository's
documentation unless another is given; experts are ranked on a different one (agentmesh/inference/models/calibration.txt).
llama-perplexity is used if it lies beside the engine; else llama-imatrix, which computes the same figure in the same way (the second half of each
chunk of 512 tokens) and is built by `agentmesh engine install`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agentmesh.core.paths import Home
from agentmesh.inference.engine.engine import EngineSearch
from agentmesh.inference.engine.locate import find_engines
from agentmesh.inference.engine.run_program import run_bounded
from agentmesh.inference.logic.moe import Kept, minimum_experts, most_used, rank, routing_share, unranked
from agentmesh.inference.models.download import size_text
from agentmesh.inference.models.expert_ranking import calibrate, from_imatrix
from agentmesh.inference.models.shard import LocalParts, SplitModel, layout_of, read_expert_model, write_shard

ROOT = Path(__file__).resolve().parents[1]
CONTEXT_TOKENS = 512
CHARS_A_TOKEN = 6  # more than any vocabulary reaches on such text
TIMEOUT_S = 4 * 3600.0
TRIES = 4
OUTPUT_BYTES = 16 * 1024 * 1024
ESTIMATE = re.compile(r"PPL = ([0-9.]+|nan|inf) \+/- ([0-9.]+|nan|inf)")


@dataclass(frozen=True)
class Measure:
    """How perplexity is measured."""

    program: Path
    text: Path
    chunks: int
    folder: Path

    def perplexity(self, model: Path) -> tuple[float, float]:
        """The estimate and its standard error."""
        command = [str(self.program), "-m", str(model), "-f", str(self.text), "-c", str(CONTEXT_TOKENS)]
        command += ["-b", str(CONTEXT_TOKENS), "--chunks", str(self.chunks)]
        if "imatrix" in self.program.name:
            command += ["-o", str(self.folder / "unused.gguf")]
        said = ""
        for _ in range(TRIES):
            ran = run_bounded(command, timeout_s=TIMEOUT_S, environ=os.environ, max_output_bytes=OUTPUT_BYTES)
            if (found := ESTIMATE.search(ran.output)) is not None and ran.code == 0:
                return float(found[1]), float(found[2])
            said = f"({ran.code}):\n{ran.output[-2000:]}"
            if ran.code is not None and ran.code < 0 and "--no-repack" not in command:
                command.append("--no-repack")  # see expert_ranking: AMX that is announced and not there
            elif ran.code != 0:
                break
            # Else its last lines are lost: llama.cpp's log does not print them each time (29 of 30 here).
        raise SystemExit(f"{' '.join(command)} failed {said}")


def programs(bin_dir: Path | None) -> tuple[Path, Path]:
    """(llama-imatrix, what perplexity is measured with)."""
    home = Home.from_environment()
    for engine in find_engines(EngineSearch(bin_dir, home, None, dict(os.environ))):
        if engine.imatrix is not None:
            beside = engine.imatrix.with_name("llama-perplexity")
            return engine.imatrix, beside if beside.is_file() else engine.imatrix
    raise SystemExit("There is no engine with llama-imatrix here: agentmesh engine install")


def made_model(folder: Path) -> Path:
    """A model that is given when none is."""
    from tests.fakes.tiny_gguf import QWEN3_MOE, write_tiny

    return write_tiny(folder / "made.gguf", replace(QWEN3_MOE, experts=16, experts_used=4, context=1024, layers=4))[0]


def own_text(folder: Path, chunks: int) -> Path:
    """The repository's pages, one after the other, as far as so many chunks reach."""
    path = folder / "text.txt"
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text("utf-8") for page in pages if page.name != "limits.md")
    path.write_text(text[: (chunks + 2) * CONTEXT_TOKENS * CHARS_A_TOKEN], "utf-8")  # all of it is split into tokens
    return path


def cut(model: SplitModel, kept: Kept, target: Path) -> Path:
    """A part of the model."""
    with LocalParts.open(model.files) as parts:
        write_shard(layout_of(model.headers, model.experts, parts, kept, "benchmark"), parts, target)
    return target


def row(name: str, size: int, share: float | None, result: tuple[float, float], whole: float) -> str:
    routing = "" if share is None else f"{share:.1%}"
    return f"| {name} | {size_text(size)} | {routing} | {result[0]:.3f} ± {result[1]:.3f} | {result[0] / whole:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--shares", default="0.75,0.5,0.25")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--bin-dir", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentmesh-moe-") as name:
        folder = Path(name)
        model = read_expert_model(chosen.model or made_model(folder))
        tool, program = programs(chosen.bin_dir)
        began = time.monotonic()
        counts = from_imatrix(chosen.imatrix, model.experts) if chosen.imatrix else calibrate(tool, model, os.environ)
        ranking_s = time.monotonic() - began
        measure = Measure(program, chosen.text or own_text(folder, chosen.chunks), chosen.chunks, folder)
        compare(model, counts.layers, measure, [float(share) for share in chosen.shares.split(",")])
        what = "made, random weights: the figures say nothing of quality" if chosen.model is None else str(chosen.model)
        print(f"\n{what}; ranked by {counts.source} in {ranking_s:.1f} s; perplexity by {program.name}")


def compare(model: SplitModel, counts: dict[int, tuple[float, ...]], measure: Measure, shares: list[float]) -> None:
    """A row for the whole model and two for each share of its experts."""
    experts = model.experts
    whole, _ = result = measure.perplexity(model.files[0])
    print("| experts a layer | weights | routing kept | perplexity | of the whole |\n|---|---|---|---|---|")
    print(row(f"all {experts.expert_count}", experts.shard_bytes(experts.expert_count), 1.0, result, whole), flush=True)
    ranked = rank(counts, experts.layers, experts.expert_count, "")
    unordered = unranked(experts.layers, experts.expert_count)
    for share in shares:
        count = minimum_experts(experts.expert_count, experts.used_count, round(share * experts.expert_count))
        for name, order in (("ranked", ranked), ("unranked", unordered)):
            kept = most_used(order, count)
            path = cut(model, kept, measure.folder / "part.gguf")
            held = routing_share(counts, experts.layers, kept)
            size = experts.shard_bytes(count)
            print(row(f"{count} {name}", size, held, measure.perplexity(path), whole), flush=True)


if __name__ == "__main__":
    main()
