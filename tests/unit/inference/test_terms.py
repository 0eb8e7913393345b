"""How high a term can be: whatever a member says, there is one above it soon."""

from __future__ import annotations

import pytest

from agentmesh.core.units import DAY_MS
from agentmesh.inference.logic.split_limits import MAX_TERM
from agentmesh.inference.logic.split_offer import SplitOffer, WantedModel, WorkedModel, facts_of
from agentmesh.inference.logic.split_values import Claim
from agentmesh.inference.logic.terms import EPOCH_MS, MIN_HIGHEST_TERM, highest_term
from tests.fakes.split_offers import OTHER, A, OffersWorld


@pytest.mark.parametrize("unix_ms", [0, EPOCH_MS - DAY_MS])
def test_a_machine_with_a_wrong_clock_has_terms_enough(unix_ms: int) -> None:
    assert highest_term(unix_ms) == MIN_HIGHEST_TERM


def test_the_highest_term_grows_with_time_until_its_end() -> None:
    now_ms = EPOCH_MS + 300 * DAY_MS
    assert MIN_HIGHEST_TERM < highest_term(now_ms) < highest_term(now_ms + 1) < MAX_TERM
    assert highest_term(1 << 62) == MAX_TERM


def test_a_term_that_nobody_can_have_yet_counts_for_nothing() -> None:
    claim = Claim(8, "d", True)
    offer = SplitOffer(wants=(WantedModel(A, "big", claim=claim),), works=(WorkedModel(A, 9),))
    facts = facts_of(offer, OTHER, A, highest_term=7)
    assert (facts.claim, facts.seen_term, facts.may_host) == (None, 0, True)
    facts = facts_of(offer, OTHER, A, highest_term=8)
    assert (facts.claim, facts.seen_term) == (claim, 0)


async def test_what_a_node_claims_is_known_by_content() -> None:
    world = OffersWorld()
    await world.hears(OTHER, SplitOffer(wants=(WantedModel(A, "big", claim=Claim(5, "d", False)),)))
    assert [world.offers.claimed(OTHER, content) for content in (A, "other")] == [5, 0]
    assert world.offers.claimed(b"x" * 32, A) == 0
    await world.hears(OTHER, SplitOffer(wants=(WantedModel(A, "big", claim=Claim(MAX_TERM, "d", True)),)), at_ms=6)
    assert world.offers.claimed(OTHER, A) == 0
    assert [facts.claim for facts in world.offers.nodes(A)] == [None]
