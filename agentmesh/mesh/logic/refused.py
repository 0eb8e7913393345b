"""The ids refused lately, so that they are not fetched again and again. Local: never part of what nodes compare."""

from __future__ import annotations

from collections import OrderedDict

from agentmesh.mesh.logic.limits import REFUSED_IDS, REFUSED_MEMORY_MS


class RefusedIds:
    """The last REFUSED_IDS ids, each for REFUSED_MEMORY_MS."""

    def __init__(self) -> None:
        self._until_ms: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_ms)

    def add(self, id_: bytes, now_ms: int) -> None:
        self._until_ms[id_] = now_ms + REFUSED_MEMORY_MS
        self._until_ms.move_to_end(id_)
        if len(self._until_ms) > REFUSED_IDS:
            self._until_ms.popitem(last=False)

    def discard(self, id_: bytes) -> None:
        self._until_ms.pop(id_, None)

    def holds(self, id_: bytes, now_ms: int) -> bool:
        until_ms = self._until_ms.get(id_)
        return until_ms is not None and now_ms < until_ms

    def current(self, now_ms: int) -> list[bytes]:
        """Those still remembered, oldest first; the others are forgotten."""
        while self._until_ms and next(iter(self._until_ms.values())) <= now_ms:
            self._until_ms.popitem(last=False)
        return list(self._until_ms)

    def clear(self) -> None:
        self._until_ms.clear()
