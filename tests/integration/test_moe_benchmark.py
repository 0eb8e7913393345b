"""benchmarks/moe_quality.py runs to its end and prints its table for a model that is given."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from tests.fakes.tiny_gguf import QWEN3_MOE, write_tiny

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 380.0
ROW = re.compile(r"\| (\d+) (ranked|unranked) \| [\d.]+ [kM]B \| ([\d.]+)% \| ([\d.]+) ± [\d.]+ \| ([\d.]+) \|")


@pytest.mark.timeout(400)
def test_it_prints_perplexities_of_parts_beside_the_whole_models(real_engine: Engine, tmp_path: Path) -> None:
    (path,) = write_tiny(tmp_path / "m.gguf", dataclasses.replace(QWEN3_MOE, experts=16, experts_used=4, context=1024))
    script = [sys.executable, str(ROOT / "benchmarks" / "moe_quality.py"), str(path)]
    folder = Path(real_engine.command[0]).parent
    options = ["--chunks", "2", "--shares", "1,0.5", "--bin-dir", str(folder)]
    ran = subprocess.run([*script, *options], capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ)
    assert ran.returncode == 0, ran.stderr
    rows = [match.groups() for match in ROW.finditer(ran.stdout)]
    assert [(count, order) for count, order, *_ in rows] == [
        ("16", "ranked"),
        ("16", "unranked"),
        ("8", "ranked"),
        ("8", "unranked"),
    ]
    assert [ratio for *_, ratio in rows[:2]] == ["1.000", "1.000"], "all experts are the whole model"
    assert float(rows[2][2]) > float(rows[3][2]), "the most used ones hold more of the routing"
