"""How many tokens a draft proposed and how many the model took, from llama-server's own counters.

Owns the names of the counters. Reads text that was asked for elsewhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

_COUNTER: Final = rb"^llamacpp:%s ([0-9][0-9.e+]{0,31})\r?$"
_DRAFTED: Final = re.compile(_COUNTER % b"spec_decode_num_draft_tokens_total", re.MULTILINE)
_ACCEPTED: Final = re.compile(_COUNTER % b"spec_decode_num_accepted_tokens_total", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Tokens since the engine's start, of requests that ended. llama-server prints six digits: from a million on they are rounded."""

    drafted: int
    accepted: int

    @property
    def sentence(self) -> str:
        """For status; empty before anything was drafted."""
        if not self.drafted:
            return ""
        return f"{100 * self.accepted / self.drafted:.0f} % of {self.drafted:,} drafted tokens were right."


def acceptance_of(metrics: bytes) -> Acceptance | None:
    """From an answer to /metrics; None if the counters are not in it."""
    drafted, accepted = _count(_DRAFTED, metrics), _count(_ACCEPTED, metrics)
    return None if drafted is None or accepted is None else Acceptance(drafted, accepted)


def _count(counter: re.Pattern[bytes], metrics: bytes) -> int | None:
    found = counter.search(metrics)
    try:
        value = float(found[1]) if found is not None else math.nan
    except ValueError:
        return None
    return int(value) if math.isfinite(value) else None
