"""Reaching a connected member that hinders."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentmesh.core.clock import SystemClock
from agentmesh.mesh import peers as module
from agentmesh.mesh.peers import Peers
from agentmesh.mesh.transport import Stream


async def test_a_peer_that_allows_no_stream_does_not_hold_up_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> Stream:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(module, "REACH_S", 0.05)
    nobody = cast(Any, None)
    peers = Peers(nobody, nobody, SystemClock(), on_dialable=nobody, publish=nobody)
    link = SimpleNamespace(connection=SimpleNamespace(open_stream=never))
    peers.driver = cast(Any, SimpleNamespace(links={b"p" * 32: link}))
    assert await asyncio.wait_for(peers.reach(b"p" * 32), 60) is None
