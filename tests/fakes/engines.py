"""The real llama.cpp engine for tests that need one: the build that `agentmesh engine install` put into the shared store.

Tests take the fixture `real_engine` (tests/conftest.py makes it known). Where no build is, they skip and say how to make
one; with AGENTMESH_REQUIRE_ALL that is a failure. The store is $AGENTMESH_ENGINE_CACHE, else ~/.cache/agentmesh/engine.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentmesh.core.paths import Home
from agentmesh.inference.engine.engine import ORIGIN_INSTALLED, Engine, EngineSearch
from agentmesh.inference.engine.locate import find_engines
from agentmesh.inference.engine.pin import load_pin
from agentmesh.inference.engine.probe import probe

# Read here, before the fixture of every test takes AGENTMESH_ variables and the home out of the environment.
ENGINE_CACHE = Path(
    os.environ.get("AGENTMESH_ENGINE_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentmesh" / "engine"
)


def engine_search(home: Path, **environ: str) -> EngineSearch:
    """A search that finds nothing but builds of the shared store (and the embedded engine)."""
    return EngineSearch(None, Home(home), None, {"AGENTMESH_ENGINE_CACHE": str(ENGINE_CACHE), "PATH": "", **environ})


@pytest.fixture(scope="session")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The pinned llama.cpp, built for this machine's CPU: server, RPC server, gguf-split, imatrix."""
    search = engine_search(tmp_path_factory.mktemp("no-home"))
    found = next((e for e in find_engines(search) if e.origin == ORIGIN_INSTALLED), None)
    if found is None or load_pin().source.commit not in str(found.program):
        pytest.skip(
            f"no llama.cpp build for this machine in {ENGINE_CACHE}; make one (5 minutes on 2 cores): "
            f"AGENTMESH_ENGINE_CACHE={ENGINE_CACHE} agentmesh engine install --flavor cpu"
        )
    with ThreadPoolExecutor(1) as pool:  # a loop may be running in this thread
        return pool.submit(asyncio.run, probe(found, os.environ)).result()
