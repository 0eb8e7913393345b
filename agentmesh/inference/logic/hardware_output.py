"""Reads what the vendors' tools and the system print about processors and graphics cards.

Foreign texts: whatever they hold, these functions return something and never raise.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

from agentmesh.inference.logic.engine_output import MAX_DEVICES, MIB, ListedDevice

_CPU_NAME: Final = re.compile(r"^(?:model name|Model|Hardware|Processor)\s*:\s*(\S.*)$", re.MULTILINE)
# PCI vendor numbers (pci-ids.ucw.cz).
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_ROCM_NAME_KEYS: Final = ("Card Series", "Card series", "Card Model", "Card model", "Device Name")
_MAX_NAME_CHARS: Final = 120


def read_cpu_model(cpuinfo: str) -> str:
    """The processor's name in /proc/cpuinfo; "" when it is not told, as on many ARM machines."""
    found = _CPU_NAME.search(cpuinfo)
    return found[1].strip()[:_MAX_NAME_CHARS] if found else ""


def read_pci_vendor(text: str) -> str:
    """The vendor of a PCI number such as 0x10de, if it makes accelerators."""
    return _VENDORS.get(text.strip().lower(), "")


def read_nvidia_smi(text: str) -> tuple[ListedDevice, ...]:
    """`name, memory.total, memory.free` a line, in MiB. Sizes that are not told ("[N/A]": memory shared with the CPU) are 0."""
    found: list[ListedDevice] = []
    for line in text.splitlines():
        name, _, sizes = line.partition(", ")
        total, _, free = sizes.partition(", ")
        if not free.strip() or len(found) >= MAX_DEVICES:
            continue
        found.append(
            ListedDevice(f"CUDA{len(found)}", name.strip()[:_MAX_NAME_CHARS], _mib(total) * MIB, _mib(free) * MIB)
        )
    return tuple(found)


def _mib(text: str) -> int:
    return int(text) if re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII) else 0


def read_rocm_smi(text: str) -> tuple[ListedDevice, ...]:
    """rocm-smi's JSON: an object for each card, all values strings, sizes in bytes."""
    start = text.find("{")  # warnings may come before it
    try:
        read: Any = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return ()
    if not isinstance(read, dict):
        return ()
    found: list[ListedDevice] = []
    for card, facts in cast("dict[str, Any]", read).items():
        if not card.startswith("card") or not isinstance(facts, dict) or len(found) >= MAX_DEVICES:
            continue
        told = {key: value for key, value in cast("dict[str, Any]", facts).items() if isinstance(value, str)}
        name = next((told[key] for key in _ROCM_NAME_KEYS if key in told), "AMD graphics")
        total, used = _bytes(told.get("VRAM Total Memory (B)", "")), _bytes(told.get("VRAM Total Used Memory (B)", ""))
        found.append(ListedDevice(f"ROCm{len(found)}", name[:_MAX_NAME_CHARS], total, max(total - used, 0)))
    return tuple(found)


def _bytes(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0
