"""The estimate of memory against what the real llama-server logs when it has loaded a model."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentmesh.inference.engine.engine import Engine
from agentmesh.inference.logic.fit import PROCESS_BYTES, Wanted, need_of
from agentmesh.inference.models.gguf import read_model
from tests.fakes.tiny_gguf import LLAMA, QWEN3_MOE, TinyModel, write_tiny

MIB = 1024 * 1024
WAIT_S = 60.0
WIDE = replace(LLAMA, name="wide", embedding=512, heads=8, kv_heads=4, feed_forward=1408, layers=4, context=65_536)
MIXTURE = replace(QWEN3_MOE, embedding=512, heads=8, kv_heads=4, feed_forward=256, experts_used=4, context=65_536)


def logged_mib(engine: Engine, model: Path, context: int, slots: int, folder: Path) -> dict[str, float]:
    """Sums of `… KV buffer size = 12.00 MiB` by the word before `buffer`."""
    log = folder / "log"
    with log.open("wb") as out:
        words = ["-m", model, "-c", str(context * slots), "-np", str(slots), "-fit", "off", "-lv", "4"]
        server = subprocess.Popen(
            [*engine.command, *words, "--host", str(folder / "e.sock")], stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while "listening on" not in (text := log.read_text(errors="replace")):
            assert server.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()
    found: dict[str, float] = {}
    for kind, size in re.findall(r"(KV|output|compute) buffer size = +([0-9.]+) MiB", text):
        found[kind] = found.get(kind, 0.0) + float(size)
    return found


@pytest.mark.parametrize("shape", [WIDE, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize(("context", "slots"), [(4096, 1), (16_384, 4)])
def test_need_is_what_llama_server_allocates(
    real_engine: Engine, tmp_path: Path, shape: TinyModel, context: int, slots: int
) -> None:
    path = write_tiny(tmp_path / "m.gguf", shape)[0]
    logged = logged_mib(real_engine, path, context, slots, tmp_path)
    need = need_of(read_model(path).facts, Wanted(), context, slots, on_device=False)
    assert need.contexts / MIB == pytest.approx(logged["KV"], rel=0.001)
    buffers_mib = (need.buffers - PROCESS_BYTES) / MIB
    measured_mib = logged["compute"] + logged["output"]
    assert 0.98 * measured_mib <= buffers_mib <= 1.4 * measured_mib
