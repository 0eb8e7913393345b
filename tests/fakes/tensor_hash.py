"""The program that hashes tensors, compiled for tests."""

from __future__ import annotations

import os
from pathlib import Path

from agentmesh.core.paths import Home
from agentmesh.inference.engine.tensor_hash import ensure_tensor_hash, program_name


def built(folder: Path) -> Path:
    """Needs a C compiler."""
    said: list[str] = []
    ensure_tensor_hash(folder, Home(folder / "home"), os.environ, folder / "log", said.append)
    assert said == []
    return folder / program_name()
