"""Where a ranking of experts comes from: an importance matrix that the user gives or that lies beside the model, one measured before,
a calibration run, or nowhere.

Owns the order of these and what is remembered in home/shards/rankings. A calibration runs the engine's own llama-imatrix on a small text
of ours; it needs the whole model in memory, as serving it would.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from agentmesh.core.errors import StorageError
from agentmesh.core.paths import Home
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.run_program import Ran, run_bounded
from agentmesh.inference.logic.expert_tensors import ExpertModel
from agentmesh.inference.logic.moe import SOURCE_CALIBRATION, SOURCE_IMATRIX, SOURCE_NONE
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.imatrix import read_counts
from agentmesh.inference.models.shard import SplitModel

CALIBRATION_TIMEOUT_S: Final = (
    2 * 3600.0
)  # some 5,000 tokens; a model that is read from disk for each batch takes an hour
CALIBRATION_OUTPUT_BYTES: Final = 16 * 1024 * 1024  # its log; a few kB at the usual level
CONTEXT_TOKENS: Final = 512  # of one piece of the text; what llama-imatrix takes by default
MAX_CHUNKS: Final = 64  # pieces of the text; ours has about 10 with a usual vocabulary, 30 with one of bytes
MAX_BESIDE: Final = 8  # files of a folder that are tried
MAX_REMEMBERED_BYTES: Final = 16 * 1024 * 1024
TAIL_LINES: Final = 4

Counts = dict[int, tuple[float, ...]]


class ExpertCounts(msgspec.Struct, frozen=True):
    """How often each expert of each layer was chosen. Nothing counted: `source` is "unranked" and `layers` empty."""

    source: str
    layers: Counts


UNRANKED: Final = ExpertCounts(SOURCE_NONE, {})


def from_imatrix(path: Path, experts: ExpertModel) -> ExpertCounts:
    """The counts of a file that the user gives. Raises: ModelFileUnusable: see read_counts."""
    return ExpertCounts(SOURCE_IMATRIX, read_counts(path, experts))


def beside(files: Sequence[Path], experts: ExpertModel) -> ExpertCounts | None:
    """The counts of an importance matrix in the model's folder (`*imatrix*.gguf`, as publishers name them), the first that fits."""
    try:
        found = sorted(path for path in files[0].parent.glob("*.gguf") if "imatrix" in path.name.lower())
    except OSError:
        return None
    for path in found[:MAX_BESIDE]:
        with contextlib.suppress(ModelFileUnusable, OSError):
            return from_imatrix(path, experts)
    return None


class RememberedCounts:
    """What calibrations found, by the models' content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_home(cls, home: Home) -> RememberedCounts:
        return cls(home.root / "shards" / "rankings")

    def any(self) -> bool:
        """Whether anything is remembered: else nobody need read a model of 40 GB to know its content."""
        return next(self._folder.glob("*.json"), None) is not None

    def recall(self, source: str, experts: ExpertModel) -> ExpertCounts | None:
        """What is known of the model whose content has this hash."""
        try:
            with self._path(source).open("rb") as file:
                known = msgspec.json.decode(file.read(MAX_REMEMBERED_BYTES), type=ExpertCounts)
        except (OSError, msgspec.MsgspecError):
            return None
        fits = all(len(counts) == experts.expert_count for counts in known.layers.values())
        return known if fits and set(known.layers) <= set(experts.layers) else None

    def remember(self, source: str, counts: ExpertCounts) -> None:
        """Keep it. Raises: StorageError: the disk does not take it."""
        path = self._path(source)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(counts))
            beside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise StorageError(f"{path} could not be written: {error.strerror}.") from error

    def _path(self, source: str) -> Path:
        return self._folder / f"{source}.json"


def calibrate(program: Path, model: SplitModel, environ: Mapping[str, str]) -> ExpertCounts:
    """Count on our own text with llama-imatrix. Blocks for as long as that takes, at most CALIBRATION_TIMEOUT_S.

    Raises:
        EngineFailed: it failed, with its last lines. ModelFileUnusable: it wrote something else than expected.
    """
    with tempfile.TemporaryDirectory(prefix="agentmesh-calibration-") as folder:
        text, result = Path(folder) / "text.txt", Path(folder) / "imatrix.gguf"
        text.write_text(calibration_text(), "utf-8")
        arguments = _arguments(program, model.files[0], text, result)
        ran = _run(arguments, environ)
        if ran.code is not None and ran.code < 0:
            # Virtual machines may announce instructions that they do not have (AMX under Firecracker: SIGSEGV or SIGILL in
            # ggml's repacked kernels). Without repacking those are not used.
            ran = _run([*arguments, "--no-repack"], environ)
        if ran.code != 0 or not result.exists():
            raise EngineFailed(_why(program, ran))
        return ExpertCounts(SOURCE_CALIBRATION, read_counts(result, model.experts))


def calibration_text() -> str:
    """Our own text: prose, questions and answers, code, data and other languages."""
    return files("agentmesh.inference.models").joinpath("calibration.txt").read_text("utf-8")


def _arguments(program: Path, model: Path, text: Path, result: Path) -> list[str]:
    sizes = ["--ctx-size", str(CONTEXT_TOKENS), "--batch-size", str(CONTEXT_TOKENS), "--chunks", str(MAX_CHUNKS)]
    return [str(program), "--model", str(model), "--file", str(text), "--output-file", str(result), "--no-ppl", *sizes]


def _run(arguments: list[str], environ: Mapping[str, str]) -> Ran:
    return run_bounded(
        arguments, timeout_s=CALIBRATION_TIMEOUT_S, environ=environ, max_output_bytes=CALIBRATION_OUTPUT_BYTES
    )


def _why(program: Path, ran: Ran) -> str:
    if ran.error is not None:
        return f"{program} could not be started: {ran.error.strerror}."
    if ran.late:
        return f"{program} did not end within {CALIBRATION_TIMEOUT_S / 3600:.0f} hours. Give an importance matrix with --imatrix."
    lines = [line for line in ran.output.splitlines() if line.strip()][-TAIL_LINES:]
    how = f"status {ran.code}" if ran.code is not None else "too much output"
    return f"{program} ended with {how}. Its last lines: {' / '.join(lines) or 'none'}"
