"""Nodes that share a model over a line that is long or slow: who is too far away is left out, and how far a fetch is is shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.inference.models.cache import HubCache
from agentmesh.inference.models.source import WantedFile
from agentmesh.inference.split.worker_files import COMMIT, FOLDER, REPO
from tests.fakes.delay_line import DelayLine, can_make_lines
from tests.fakes.node_process import NodeHome, wait_for
from tests.fakes.split_cases import parts_lent, refused, wait_reason
from tests.fakes.split_nodes import PLANNED_S, SplitNodes, complete, model_of, place_on, wait_state

pytestmark = [
    pytest.mark.skipif(not can_make_lines(), reason="needs root, iproute2 and /dev/net/tun"),
    pytest.mark.timeout(900),  # 25 s where nothing else runs
]

HOST, WORKER = 0, 1
FAR_MS = 120.0  # half as much again as is of use
SLOW_BITS_PER_S = 40_000_000.0  # 25 s for the file, and nobody waits for them; a status takes a second, and more
DAMAGED_BYTES = 100_000_000


@pytest.fixture
def line() -> Iterator[DelayLine]:
    with DelayLine(2) as made:
        yield made


def damaged_rest(worker: NodeHome, file: Path) -> Path:
    """What a fetch that broke off has left there, with other bytes than the file's."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = WantedFile(REPO, COMMIT, COMMIT, f"{digest}.gguf", file.stat().st_size, digest, None)
    rest = HubCache(worker.root / FOLDER).partial(wanted)
    rest.parent.mkdir(parents=True)
    rest.write_bytes(bytes(DAMAGED_BYTES))
    return rest


def told_ms(text: str) -> float:
    """How far away the worker is by this sentence."""
    told = re.search(r"worker is (\d+) ms away from host", text)
    assert told is not None, text
    return float(told[1])


def fetched_mb(host: NodeHome) -> float | None:
    """How much of the file the worker has, by the host's status."""
    told = re.search(r"^worker: fetching the model's files: ([0-9.]+) MB of 123 MB", model_of(host).get("reason", ""))
    return float(told[1]) if told else None


def test_a_worker_that_is_too_far_is_left_out_until_it_is_nearer_and_then_its_fetch_is_shown(
    line: DelayLine, sharing: SplitNodes, dense_alone: str
) -> None:
    """What a fetch that broke off left there is damaged: it begins anew, in sight, and the split goes on."""
    line.shape(rtt_ms=FAR_MS)
    host = sharing.start("host", place=place_on(line, HOST))
    worker = sharing.lend("worker", place=place_on(line, WORKER))
    seen = wait_reason(host, "worker is ", " ms away from host; at most 80 ms are of use.")
    assert seen["state"] == "waiting"
    assert told_ms(seen["reason"]) >= FAR_MS  # the step above what was measured
    with line.inside(HOST):
        status, error = refused(host)
    assert (status, error["code"]) == (503, "model_waiting")
    assert told_ms(error["message"]) >= FAR_MS
    assert not parts_lent(worker)

    rest = damaged_rest(worker, sharing.file)
    line.shape(bits_per_s=SLOW_BITS_PER_S)
    wait_for(
        lambda: 0 < (fetched_mb(host) or 0) < DAMAGED_BYTES / 1e6, PLANNED_S, "the fetch that began anew to be shown"
    )
    line.shape()
    told = wait_state(host, "ready")
    assert told["nodes"] == [node.json("status")["node_id"] for node in (host, worker)]
    assert [one["has_files"] for one in told["workers"]] == [True]
    assert not rest.exists()
    with line.inside(HOST):
        assert complete(host) == dense_alone
