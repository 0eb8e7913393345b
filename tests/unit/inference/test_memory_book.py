"""Memory for parts of models: promised part by part, and told place by place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.logic.fit import NO_DEVICE
from agentmesh.inference.memory import MemoryBook
from tests.fakes.serving import FakeMachine
from tests.fakes.split_world import GB

GPUS = (Device("CUDA0", "one", 8 * GB, 6 * GB), Device("CUDA1", "two", 8 * GB, 2 * GB))


def an_engine(*devices: Device) -> Engine:
    return Engine(("x",), None, None, None, "cpu", "PATH", 1, "0c1e570", frozenset(), tuple(devices), True)


def a_book(devices: Sequence[Device] = GPUS, cap_bytes: int | None = None) -> MemoryBook:
    async def now(_engine: Engine) -> Sequence[Device]:
        return devices

    return MemoryBook(now, FakeMachine(32 * GB), cap_bytes)


async def free(book: MemoryBook, device: str | None = None) -> list[int]:
    """Of each device, then of the machine, in GB."""
    left = await book.left(an_engine(*GPUS), device)
    return [round(room.free_bytes / GB) for room in (*left.devices, left.machine)]


async def test_parts_are_promised_where_they_lie_and_each_counts_once() -> None:
    book = a_book()
    book.promise_bytes(("job", "CUDA0"), "CUDA0", 4 * GB)
    book.promise_bytes(("job", ""), None, 5 * GB)
    book.promise_bytes(("other", ""), NO_DEVICE, 7 * GB)
    assert await free(book) == [2, 2, 20]
    book.settle(("job", "CUDA0"), None)  # the device shows it from now on
    book.release(("job", ""))
    assert await free(book) == [6, 2, 25]
    book.unsettle(("job", "CUDA0"))
    assert await free(book) == [2, 2, 25]


async def test_a_settled_part_in_the_machine_s_memory_counts_with_what_its_process_has_not_taken() -> None:
    machine = FakeMachine(32 * GB)

    async def none(_engine: Engine) -> Sequence[Device]:
        return ()

    book = MemoryBook(none, machine)
    book.promise_bytes("job", None, 10 * GB)
    machine.held[7], machine.available = 4 * GB, 28 * GB
    book.settle("job", 7)
    assert (await book.left(None, None)).machine.free_bytes == 22 * GB


async def test_of_a_cap_what_is_left_is_free_and_devices_share_it() -> None:
    book = a_book(cap_bytes=4 * GB)
    assert await free(book) == [3, 1, 4]
    book.promise_bytes("job", "CUDA1", 2 * GB)
    left = await book.left(an_engine(*GPUS), None)
    assert [room.free_bytes for room in left.devices] == [2 * GB, 0]
    assert {room.total_bytes for room in (*left.devices, left.machine)} == {4 * GB}


async def test_only_the_device_that_the_user_named_is_told_and_none_means_the_machine() -> None:
    book = a_book()
    left = await book.left(an_engine(*GPUS), "cuda1")
    assert [room.device for room in left.devices] == ["CUDA1"]
    assert (await book.left(an_engine(*GPUS), NO_DEVICE)).devices == ()
    assert (await book.left(an_engine(), None)).devices == ()
    with pytest.raises(InvalidInput, match="CUDA7"):
        await book.left(an_engine(*GPUS), "CUDA7")
