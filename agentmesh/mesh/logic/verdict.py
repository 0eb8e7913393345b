"""What the record index answers when it is offered a record."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record was not kept."""

    # not yet
    TOO_EARLY = "its timestamp is in the future"
    AUTHOR_UNKNOWN = "no valid membership of its author is known yet"
    # refused, and no honest node could have sent it
    MALFORMED = "it breaks the rules of its kind"
    # refused, though the sender may have known less than we do
    UNKNOWN_KIND = "its kind is not known here"
    EXPIRED = "it has expired"
    AUTHOR_OUT = "its author is no longer a member"
    REPLACED = "a newer record is in its place"
    RETRACTED = "its author retracted it"
    OVER_QUOTA = "its author, or those invited along with it, already have as many as count in that time"
    DISCARDED = "it was here and has been discarded"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Kept. `dropped` are records that are kept no longer because of it: replaced, retracted, or displaced by quota."""

    dropped: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class NotYet:
    """Neither kept nor refused: offer it again once its time or its author's certificate has come."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Refused:
    """Not kept. `blame`: no honest node could have sent it."""

    reason: Reason
    blame: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """Kept already."""


Verdict = Accepted | NotYet | Refused | Known
