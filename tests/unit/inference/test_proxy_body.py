"""Bodies of requests: in memory or in a file without a name, and never more of them than the budget."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from agentmesh.inference.proxy.body import BodyBudget, BodySpool, BodyTooLarge, NoRoomForBody
from agentmesh.inference.proxy.settings import ApiSettings


def spool(folder: Path, budget: BodyBudget) -> BodySpool:
    return BodySpool(budget, ApiSettings(spill_folder=folder, spill_bytes=100, max_body_bytes=1000))


@pytest.mark.parametrize("size", [0, 1, 100, 101, 1000])
def test_a_body_is_given_back_as_it_came_however_large(tmp_path: Path, size: int) -> None:
    budget = BodyBudget(1000)
    coming, data = spool(tmp_path, budget), bytes(range(256)) * 4
    for start in range(0, size, 33):
        coming.add(data[start : min(start + 33, size)])
    body = coming.finish()
    assert body.read(bytes) == data[:size] == b"".join([body.piece(0)])
    assert (body.data is None) is (size > 100)
    assert (body.size, budget.used_bytes) == (size, size)
    assert list(tmp_path.iterdir()) == []
    body.close()
    body.close()
    assert budget.used_bytes == 0


def test_a_body_beyond_its_limit_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    budget = BodyBudget(5000)
    coming = spool(tmp_path, budget)
    coming.add(b"x" * 1000)
    with pytest.raises(BodyTooLarge):
        coming.add(b"x")
    coming.close()
    assert budget.used_bytes == 0


def test_bodies_beyond_the_budget_are_refused(tmp_path: Path) -> None:
    budget = BodyBudget(1500)
    first, second = spool(tmp_path, budget), spool(tmp_path, budget)
    first.add(b"x" * 1000)
    with pytest.raises(NoRoomForBody):
        second.add(b"x" * 501)
    second.add(b"x" * 500)
    first.close()
    second.close()
    assert budget.used_bytes == 0


def test_a_disk_that_cannot_take_it_is_a_refusal(tmp_path: Path) -> None:
    budget = BodyBudget(5000)
    coming = spool(tmp_path / "missing", budget)
    with pytest.raises(NoRoomForBody, match="could not be kept"):
        coming.add(b"x" * 200)
    coming.close()
    assert budget.used_bytes == 0


def test_a_body_that_comes_in_crumbs_takes_little_more_memory_than_it_has_bytes() -> None:
    budget = BodyBudget(1_000_000)
    coming = BodySpool(budget, ApiSettings())
    tracemalloc.start()
    try:
        for number in range(50_000):
            coming.add(number.to_bytes(2, "big"))
        coming.add(b"x" * 5_000)
        coming.add(b"end")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 300_000
    body = coming.finish()
    assert body.data == b"".join(number.to_bytes(2, "big") for number in range(50_000)) + b"x" * 5_000 + b"end"
    body.close()
    assert budget.used_bytes == 0
