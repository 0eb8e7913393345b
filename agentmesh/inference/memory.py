"""How much memory there is for models, and who was promised what.

Owns the promises: a model counts from the moment it was found to fit until its engine is gone, whether or not it has taken the memory
yet. Measures devices through the engine and the machine through psutil. Owner: the event loop; `lock` is held over measuring and promising.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.core.errors import InvalidInput
from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.logic.fit import NO_DEVICE, Fit, Room, size
from agentmesh.inference.models.local import machine_memory_bytes

CPU_NAMES: Final = (NO_DEVICE, "cpu", "CPU")

DevicesNow = Callable[[Engine], Awaitable[Sequence[Device]]]


@dataclass(slots=True)
class Promise:
    """Memory of one model. `settled`: its engine is ready, so that a device's free memory shows it; `pid`: of the engine."""

    device: str | None
    need_bytes: int
    settled: bool = False
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """What is left on each device, and of the machine's memory."""

    devices: tuple[Room, ...]
    machine: Room


class Machine:
    """The memory of this machine, as psutil tells it. Replaced in tests."""

    def total_bytes(self) -> int:
        return machine_memory_bytes()

    def available_bytes(self) -> int:
        """What could be used without swapping; files in the page cache count as free."""
        import psutil

        return int(psutil.virtual_memory().available)

    def held_bytes(self, pid: int) -> int:
        """What a process holds that is no file's page: it is missing from `available_bytes` already."""
        import psutil

        try:
            info = psutil.Process(pid).memory_info()
        except psutil.Error:
            return 0
        return max(0, int(info.rss) - int(getattr(info, "shared", info.rss)))

    def mapped_bytes(self, pid: int) -> int:
        """What a process uses of files' pages: `available_bytes` calls it free, and is wrong for an engine's weights."""
        import psutil

        try:
            return max(0, int(getattr(psutil.Process(pid).memory_info(), "shared", 0)))
        except psutil.Error:
            return 0


class MemoryBook:
    """Rooms for models, less what was promised."""

    def __init__(self, devices_now: DevicesNow, machine: Machine | None = None, cap_bytes: int | None = None) -> None:
        self._devices_now = devices_now
        self._machine = machine or Machine()
        self._cap_bytes = cap_bytes
        self._promises: dict[object, Promise] = {}
        self._freed = asyncio.Event()
        self.lock = asyncio.Lock()

    async def rooms(self, engine: Engine, device: str | None, cap_bytes: int | None = None) -> list[Room]:
        """Where a model could go, the preferred first: the device that was named, else the one with most free memory, all of
        them together, the machine's memory.

        Raises:
            InvalidInput: there is no such device. EngineFailed: the engine does not tell.
        """
        devices = tuple(await self._devices_now(engine)) if engine.devices else ()
        if device is not None and device not in CPU_NAMES:
            rooms = [self._together(_named(device, devices))]
        else:
            rooms = [self._machine_room(NO_DEVICE if devices else None)]
            if device is None and devices:
                singles = sorted((self._together((one,)) for one in devices), key=lambda room: -room.free_bytes)
                together = [self._together(devices)] if len(devices) > 1 else []
                rooms = [singles[0], *together, *rooms]
        cap = min((c for c in (cap_bytes, self._cap_bytes) if c is not None), default=None)
        if cap is None:
            return rooms
        left = self._left_of(cap)
        return [Room(r.device, min(r.total_bytes, cap), min(r.free_bytes, left)) for r in rooms]

    async def left(self, engine: Engine | None, device: str | None) -> Left:
        """What is left for parts of models, place by place; parts may lie on several devices at once.

        Of a cap, the devices share what is left, in proportion to what is free on each.

        Raises:
            InvalidInput: there is no such device. EngineFailed: the engine does not tell.
        """
        devices: Sequence[Device] = ()
        if engine is not None and engine.devices and device not in CPU_NAMES:
            devices = tuple(await self._devices_now(engine))
            devices = devices if device is None else _named(device, devices)
        rooms = [self._together((one,)) for one in devices]
        machine = self._machine_room(NO_DEVICE if devices else None)
        if self._cap_bytes is None:
            return Left(tuple(rooms), machine)
        cap, left = self._cap_bytes, self._left_of(self._cap_bytes)
        free = max(sum(room.free_bytes for room in rooms), 1)
        shared = [min(room.free_bytes, room.free_bytes * left // free) for room in rooms]
        return Left(
            tuple(Room(r.device, min(r.total_bytes, cap), share) for r, share in zip(rooms, shared, strict=True)),
            Room(machine.device, min(machine.total_bytes, cap), min(machine.free_bytes, left)),
        )

    def machine_free_bytes(self) -> int:
        """What is left of the machine's memory, and of what the user allows."""
        free = self._machine_room(None).free_bytes
        return free if self._cap_bytes is None else min(free, self._cap_bytes)

    def promise(self, key: object, fit: Fit) -> None:
        """Count a model from now on."""
        self._promises[key] = Promise(fit.room.device, fit.need.total)

    def promise_bytes(self, key: object, device: str | None, need_bytes: int) -> None:
        """Count a part of a model from now on, on a device or (None, NO_DEVICE) in the machine's memory. A run that takes of several
        makes a promise for each, with keys of their own."""
        self._promises[key] = Promise(device, need_bytes)

    def settle(self, key: object, pid: int | None) -> None:
        """Its engine is ready: what it has taken shows in what is free."""
        if (promise := self._promises.get(key)) is not None:
            promise.settled, promise.pid = True, pid

    def unsettle(self, key: object) -> None:
        """Its engine crashed and is started again: what is free now will be missing soon."""
        if (promise := self._promises.get(key)) is not None:
            promise.settled, promise.pid = False, None

    def release(self, key: object) -> None:
        """Its engine is gone. Whoever waits for memory looks again."""
        if self._promises.pop(key, None) is not None:
            self._freed.set()
            self._freed = asyncio.Event()

    async def wait_freed(self, at_most_s: float) -> None:
        """Until something was released here, or so long: other programs free memory without telling."""
        freed = self._freed
        try:
            async with asyncio.timeout(at_most_s):
                await freed.wait()
        except TimeoutError:
            return

    def _left_of(self, cap_bytes: int) -> int:
        return max(cap_bytes - sum(promise.need_bytes for promise in self._promises.values()), 0)

    def _together(self, devices: Sequence[Device]) -> Room:
        names = {device.name for device in devices}
        promised = sum(
            promise.need_bytes
            for promise in self._promises.values()
            if not promise.settled and names.intersection((promise.device or "").split(","))
        )
        free = max(sum(device.free_bytes for device in devices) - promised, 0)
        return Room(",".join(device.name for device in devices), sum(d.total_bytes for d in devices), free)

    def _machine_room(self, device: str | None) -> Room:
        total = self._machine.total_bytes()
        # An engine takes its memory only when it is used: weights are pages of files, contexts are untouched at first.
        promised = sum(
            self._missing(promise) for promise in self._promises.values() if promise.device in (None, NO_DEVICE)
        )
        return Room(device, total, max(min(self._machine.available_bytes(), total) - promised, 0))

    def _missing(self, promise: Promise) -> int:
        """What of a promise does not show in what is free. An engine may hold more than it was promised (prompts that it keeps);
        its weights stay in use all the same."""
        if promise.pid is None:
            return promise.need_bytes
        mapped = min(self._machine.mapped_bytes(promise.pid), promise.need_bytes)
        return max(promise.need_bytes - self._machine.held_bytes(promise.pid), mapped)


def _named(device: str, devices: Sequence[Device]) -> list[Device]:
    by_name = {one.name.lower(): one for one in devices}
    chosen = [by_name.get(name.strip().lower()) for name in device.split(",")]
    if None in chosen or not chosen:
        there = ", ".join(f"{one.name} ({one.description}, {size(one.free_bytes)} free)" for one in devices)
        raise InvalidInput(
            f"There is no device '{device}'. The engine has: {there or 'the CPU only'}; '{NO_DEVICE}' means the CPU."
        )
    return [one for one in chosen if one is not None]
