"""Counts of experts: from an importance matrix, from a calibration, remembered; and every file that is none of it."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.models import expert_ranking
from agentmesh.inference.models.errors import ModelFileUnusable
from agentmesh.inference.models.expert_ranking import (
    ExpertCounts,
    RememberedCounts,
    calibrate,
    calibration_text,
    from_imatrix,
)
from agentmesh.inference.models.shard import SplitModel, read_expert_model
from tests.fakes.engine_programs import program
from tests.fakes.expert_gguf import ExpertShape, write_expert_gguf

COUNTS = {0: (5.0, 0.0, 2.0, 9.0), 1: (1.0, 2.0, 3.0, 4.0)}


@pytest.fixture
def model(tmp_path: Path) -> SplitModel:
    write_expert_gguf(tmp_path / "experts.gguf", ExpertShape(experts=4))
    return read_expert_model(tmp_path / "experts.gguf")


def write_imatrix(path: Path, counts: dict[int, tuple[float, ...]], *, kind: str = "imatrix", stem: str = "") -> Path:
    """What llama-imatrix writes (save_imatrix in tools/imatrix/imatrix.cpp): sums of squares and counts, sorted by name."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    for layer, values in counts.items():
        for name in ("attn_k", "ffn_down_exps", "ffn_gate_exps", "ffn_up_exps"):
            experts = 1 if name == "attn_k" else len(values)
            row = np.array([[512.0]] if name == "attn_k" else [[value] for value in values], dtype=np.float32)
            writer.add_tensor(f"{stem}blk.{layer}.{name}.weight.in_sum2", np.ones((experts, 8), dtype=np.float32))
            writer.add_tensor(f"{stem}blk.{layer}.{name}.weight.counts", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_counts_are_those_of_the_tokens_routed_to_each_expert(model: SplitModel, tmp_path: Path) -> None:
    assert from_imatrix(write_imatrix(tmp_path / "i.gguf", COUNTS), model.experts) == ExpertCounts("imatrix", COUNTS)


def test_a_matrix_of_some_layers_is_taken_for_those(model: SplitModel, tmp_path: Path) -> None:
    found = from_imatrix(write_imatrix(tmp_path / "i.gguf", {1: COUNTS[1]}), model.experts)
    assert found.layers == {1: COUNTS[1]}


def test_files_that_are_no_counts_of_this_model_are_refused(model: SplitModel, tmp_path: Path) -> None:
    old = tmp_path / "old.dat"
    old.write_bytes(b"\x05\0\0\0rest")
    cut = write_imatrix(tmp_path / "cut.gguf", COUNTS)
    cut.write_bytes(cut.read_bytes()[:-40])
    for path, said in (
        (old, "older form"),
        (tmp_path / "none.gguf", "cannot be read"),
        (model.files[0], "no importance matrix"),
        (cut, "cut short"),
        (write_imatrix(tmp_path / "dense.gguf", COUNTS, stem="x"), "no counts of experts"),
        (write_imatrix(tmp_path / "deep.gguf", {9: COUNTS[0]}), "another model: it has experts in layer 9"),
        (write_imatrix(tmp_path / "more.gguf", {0: (1.0,) * 5}), "counts 5 experts where the model has 4"),
        (write_imatrix(tmp_path / "nan.gguf", {0: (1.0, float("nan"), 1.0, 1.0)}), "damaged"),
        (write_imatrix(tmp_path / "negative.gguf", {0: (1.0, -1.0, 1.0, 1.0)}), "damaged"),
    ):
        with pytest.raises(ModelFileUnusable, match=said):
            from_imatrix(path, model.experts)


def test_what_was_measured_is_remembered_by_content(model: SplitModel, tmp_path: Path) -> None:
    remembered = RememberedCounts.of_home(Home(tmp_path / "home"))
    measured = ExpertCounts("calibration", COUNTS)
    assert remembered.recall("aa", model.experts) is None
    remembered.remember("aa", measured)
    assert remembered.recall("aa", model.experts) == measured
    assert remembered.recall("bb", model.experts) is None


@pytest.mark.parametrize(
    "text", ["", "{", '{"source":"calibration","layers":{"0":[1]}}', '{"source":"x","layers":{"7":[1,2,3,4]}}']
)
def test_a_memory_that_is_damaged_or_of_another_model_is_none(model: SplitModel, tmp_path: Path, text: str) -> None:
    remembered = RememberedCounts(tmp_path)
    (tmp_path / "aa.json").write_text(text)
    assert remembered.recall("aa", model.experts) is None


def imatrix_program(folder: Path, made: Path, before: str = "") -> Path:
    """Stands in for llama-imatrix: copies `made` to its --output-file."""
    body = f"""{before}
echo "$@" >> {folder}/runs
while [ $# -gt 1 ]; do case $1 in --output-file) out=$2;; --file) cp "$2" {folder}/text;; esac; shift; done
cp {made} "$out" """
    return program(folder / "llama-imatrix", body)


def test_a_calibration_runs_the_engines_program_on_our_text(model: SplitModel, tmp_path: Path) -> None:
    tool = imatrix_program(tmp_path / "bin", write_imatrix(tmp_path / "i.gguf", COUNTS))
    assert calibrate(tool, model, os.environ) == ExpertCounts("calibration", COUNTS)
    assert (tmp_path / "bin" / "text").read_text("utf-8") == calibration_text()
    (run,) = (tmp_path / "bin" / "runs").read_text().splitlines()
    assert f"--model {model.files[0]}" in run
    assert "--no-repack" not in run


def test_a_calibration_that_dies_by_a_signal_is_tried_once_without_repacking(model: SplitModel, tmp_path: Path) -> None:
    crash = 'case "$*" in *--no-repack*) ;; *) kill -SEGV $$;; esac'
    tool = imatrix_program(tmp_path / "bin", write_imatrix(tmp_path / "i.gguf", COUNTS), crash)
    assert calibrate(tool, model, os.environ).layers == COUNTS


def test_a_calibration_that_fails_says_why(model: SplitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineFailed, match=r"ended with status 1\. Its last lines: loading / no memory"):
        calibrate(program(tmp_path / "a", "echo loading; echo no memory; exit 1"), model, os.environ)
    with pytest.raises(EngineFailed, match="ended with status 0"):
        calibrate(program(tmp_path / "b", "exit 0"), model, os.environ)
    with pytest.raises(EngineFailed, match="could not be started"):
        calibrate(tmp_path / "none", model, os.environ)
    monkeypatch.setattr(expert_ranking, "CALIBRATION_TIMEOUT_S", 0.2)
    with pytest.raises(EngineFailed, match="did not end"):
        calibrate(program(tmp_path / "c", "exec tail -f /dev/null"), model, os.environ)
