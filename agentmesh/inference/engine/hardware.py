"""What this machine is: processor, memory, accelerators. For `agentmesh gpus` and for planning.

Accelerators are those that the engine lists, because it is the one that will use them; without an engine, the vendors' tools
are asked, and then the system.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agentmesh.inference.engine.engine import Device, Engine
from agentmesh.inference.engine.errors import EngineFailed
from agentmesh.inference.engine.limits import MAX_CARDS, TOOL_TIMEOUT_S
from agentmesh.inference.engine.probe import devices_now
from agentmesh.inference.engine.run_program import ask
from agentmesh.inference.logic.hardware_output import read_cpu_model, read_nvidia_smi, read_pci_vendor, read_rocm_smi

SEEN_BY_ENGINE: Final = "engine"
SEEN_BY_NVIDIA: Final = "nvidia-smi"
SEEN_BY_ROCM: Final = "rocm-smi"
SEEN_BY_SYSTEM: Final = "system"


@dataclass(frozen=True)
class Hardware:
    """The report. `devices_from` says who listed the devices; `note` is a sentence for the user, or empty.

    A device's sizes are 0 where the lister does not know them. `usable_devices` is whether the engine can use them.
    """

    cpu: str
    cores: int
    threads: int
    memory_total_bytes: int
    memory_available_bytes: int
    devices: tuple[Device, ...]
    devices_from: str
    note: str

    @property
    def usable_devices(self) -> bool:
        return bool(self.devices) and self.devices_from == SEEN_BY_ENGINE


async def hardware(engine: Engine | None, environ: Mapping[str, str]) -> Hardware:
    """Report this machine. An engine that does not answer counts as none. Never raises."""
    devices: tuple[Device, ...] = ()
    seen_by, note = SEEN_BY_ENGINE, ""
    if engine is not None:
        try:
            devices = await devices_now(engine, environ)
        except EngineFailed as error:
            note = error.message
    if not devices:
        devices, seen_by = await _devices_without_engine(environ)
        note = note or _note(engine, devices)
    if not devices:
        seen_by = SEEN_BY_ENGINE if engine is not None else SEEN_BY_SYSTEM
    memory = psutil.virtual_memory()
    return Hardware(
        cpu=await cpu_model(environ),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=os.cpu_count() or 1,
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        devices=devices,
        devices_from=seen_by,
        note=note,
    )


def _note(engine: Engine | None, devices: tuple[Device, ...]) -> str:
    if engine is None:
        return "There is no engine yet: agentmesh engine install builds one."
    if devices:
        return (
            f"The engine in use ({engine.flavor}, from {engine.origin}) cannot use these devices: "
            "agentmesh engine install builds one that can."
        )
    return ""


async def cpu_model(environ: Mapping[str, str]) -> str:
    """The processor's name as the system tells it."""
    if sys.platform == "darwin":
        ran = await ask(("sysctl", "-n", "machdep.cpu.brand_string"), timeout_s=TOOL_TIMEOUT_S, environ=environ)
        if ran.code == 0 and ran.output.strip():
            return ran.output.strip()
    named = read_cpu_model(_text(Path("/proc/cpuinfo")))
    return named or platform.processor() or platform.machine()


async def _devices_without_engine(environ: Mapping[str, str]) -> tuple[tuple[Device, ...], str]:
    path = environ.get("PATH")
    if nvidia := shutil.which("nvidia-smi", path=path):
        command = (nvidia, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
        ran = await ask(command, timeout_s=TOOL_TIMEOUT_S, environ=environ)
        if ran.code == 0 and (listed := read_nvidia_smi(ran.output)):
            return tuple(Device(*device) for device in listed), SEEN_BY_NVIDIA
    if rocm := shutil.which("rocm-smi", path=path):
        command = (rocm, "--showproductname", "--showmeminfo", "vram", "--json")
        ran = await ask(command, timeout_s=TOOL_TIMEOUT_S, environ=environ)
        if ran.code == 0 and (listed := read_rocm_smi(ran.output)):
            return tuple(Device(*device) for device in listed), SEEN_BY_ROCM
    return _system_devices(Path("/sys/class/drm")), SEEN_BY_SYSTEM


def _system_devices(folder: Path) -> tuple[Device, ...]:
    """Graphics cards that Linux lists, by their vendor; AMD's driver tells their memory too. Display chips of virtual
    machines and boards are left out: their vendors make no accelerators."""
    found: list[Device] = []
    for card in sorted(folder.glob("card[0-9]*/device"))[:MAX_CARDS]:
        vendor = read_pci_vendor(_text(card / "vendor"))
        name = card.parent.name
        if vendor and "-" not in name:  # card0-HDMI-A-1 is a connector
            total, used = _number(card / "mem_info_vram_total"), _number(card / "mem_info_vram_used")
            found.append(Device(name, f"{vendor} graphics", total, max(total - used, 0)))
    return tuple(found)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isascii() and text.isdigit() else 0
