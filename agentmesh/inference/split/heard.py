"""What other nodes said of themselves for splits, by their newest records.

Owns which record of a node counts, how many nodes are remembered, and what they are for each model. Whether a node is there now is for others to say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentmesh.inference.logic.split_offer import (
    MAX_WANTED,
    SplitOffer,
    claimed_term,
    decode_split_offer,
    facts_of,
    says_something,
)
from agentmesh.inference.logic.split_values import NodeFacts
from agentmesh.mesh.logic.record import Record

_log = logging.getLogger(__name__)

MAX_NODES: Final = 256  # that say something of splits; a plan with so many takes 10 ms, 70 at worst


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


class KnownFacts:
    """What nodes are for each model, remembered until they say something else: whenever one record changes, all nodes are asked for."""

    def __init__(self) -> None:
        self._known: dict[str, dict[bytes, tuple[SplitOffer, NodeFacts]]] = {}

    def of(self, content: str, offers: Iterable[tuple[bytes, SplitOffer]], highest_term: int) -> tuple[NodeFacts, ...]:
        """Of these nodes for this content, in this order."""
        known = self._known.pop(content, {})
        now: dict[bytes, tuple[SplitOffer, NodeFacts]] = {}
        found: list[NodeFacts] = []
        for node, offer in offers:
            one = known.get(node)
            if one is not None and one[0] is offer:
                now[node] = one
            else:
                one = offer, facts_of(offer, node, content, highest_term=highest_term)
                if _is_below(offer, highest_term):
                    now[node] = one
            found.append(one[1])
        self._known[content] = now  # the latest last
        while len(self._known) > 2 * MAX_WANTED:
            del self._known[next(iter(self._known))]
        return tuple(found)


def _is_below(offer: SplitOffer, highest_term: int) -> bool:
    """Whether its terms count now, and so always. Others will some time, and have to be looked at again."""
    return all(claimed_term(model) <= highest_term for model in offer.wants) and all(
        model.seen_term <= highest_term for model in offer.works
    )
