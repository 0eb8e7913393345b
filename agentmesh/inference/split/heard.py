"""What other nodes said of themselves for splits, by their newest records.

Owns which record of a node counts, and how many nodes are remembered. Whether a node is there now is for others to say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentmesh.inference.logic.split_offer import SplitOffer, decode_split_offer, says_something
from agentmesh.mesh.logic.record import Record

_log = logging.getLogger(__name__)

MAX_NODES: Final = 256  # that say something of splits; a plan with 300 takes a quarter of a second


@dataclass(frozen=True, slots=True)
class _Heard:
    """The record of a node that counts; `offer` is None if it says nothing, or nothing that could be read."""

    id: bytes
    timestamp_ms: int
    offer: SplitOffer | None


class HeardOffers:
    """See the module."""

    def __init__(self) -> None:
        self._heard: dict[bytes, _Heard] = {}
        self._authors: dict[bytes, bytes] = {}  # record id -> author
        self._was_full = False

    def offers(self) -> list[tuple[bytes, SplitOffer]]:
        """(node, what it says), of those that say something."""
        return [(node, heard.offer) for node, heard in self._heard.items() if heard.offer is not None]

    def has(self, node: bytes) -> bool:
        """Whether it says something."""
        heard = self._heard.get(node)
        return heard is not None and heard.offer is not None

    def hear(self, record: Record) -> bool:
        """Take a record in: whether anything changed."""
        author = record.author
        before = self._heard.get(author)
        if before is not None and (record.timestamp_ms, record.id) <= (before.timestamp_ms, before.id):
            return False
        if before is None and not self._has_room():
            return False
        if before is not None:
            del self._authors[before.id]
        offer = decode_split_offer(record.payload)
        if offer is None:
            _log.debug("What node %s says of splits cannot be read; it takes no part.", author.hex()[:12])
        elif not says_something(offer):
            offer = None
        self._heard[author] = _Heard(record.id, record.timestamp_ms, offer)
        self._authors[record.id] = author
        return offer != (before.offer if before is not None else None)

    def drop(self, ids: Iterable[bytes]) -> bool:
        """These records are gone: whether anything changed."""
        gone = [self._heard.pop(self._authors.pop(id_)) for id_ in ids if id_ in self._authors]
        return any(heard.offer is not None for heard in gone)

    def _has_room(self) -> bool:
        """For one node more; who says nothing any more gives way."""
        if len(self._heard) < MAX_NODES:
            return True
        silent = next((node for node, heard in self._heard.items() if heard.offer is None), None)
        if silent is not None:
            del self._authors[self._heard.pop(silent).id]
        elif not self._was_full:
            _log.warning("So many nodes take part in splits that more are not taken up until some end.")
            self._was_full = True
        return silent is not None
