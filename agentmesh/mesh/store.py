"""Where the mesh keeps records. The blackboard's database implements it; tests use the one in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentmesh.mesh.logic.entry import StoredEntry, Tombstone
from agentmesh.mesh.logic.record import Record, SignedRecord


class RecordStore(Protocol):
    """Durable records by id, of every kind."""

    async def add(self, records: Sequence[Record]) -> None:
        """Keep these; they are on disk when this returns. Raises: StorageError: none of them was kept."""
        ...

    async def drop(self, ids: Sequence[bytes]) -> None:
        """Forget these, but for the quota slots that they still hold; unknown ids are fine. Raises: StorageError."""
        ...

    async def load(self, ids: Sequence[bytes]) -> list[SignedRecord]:
        """The records that are here, in the order asked; absent ones are left out."""
        ...

    async def load_kind(self, kind: str) -> list[SignedRecord]:
        """Every stored record of a kind."""
        ...

    async def load_index(self) -> tuple[list[StoredEntry], list[Tombstone]]:
        """Everything stored, without payloads, and the quota slots whose records are gone."""
        ...
