"""The records of a moment, as reconciliation sees them, safe to read in another thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Item(Protocol):
    """What reconciliation needs to know of a record."""

    @property
    def id(self) -> bytes: ...

    @property
    def order_class(self) -> int: ...

    @property
    def timestamp_ms(self) -> int: ...

    @property
    def expires_ms(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`items` sorted by (order_class, timestamp, id); `unwanted`: ids that are not kept and must not be asked for."""

    items: Sequence[Item]
    unwanted: Sequence[bytes] = ()
