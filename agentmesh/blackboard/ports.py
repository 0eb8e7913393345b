"""What the blackboard gives and what it needs: the shapes that cross its boundary, and the seams to mesh and scrubber.

Owns no behaviour. `BlackboardService` (service.py) is built on `Publisher` and `TextScrubber`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from agentmesh.mesh.logic.record import Record

# ------------------------------------------------------------------ what callers see (JSON of the contract)


class PostView(msgspec.Struct, frozen=True, kw_only=True):
    """One post as every face shows it. Ids are hex, times ms UTC; `verified`: its node's signature was checked."""

    id: str
    kind: str
    topic: str | None
    branch: str | None
    text: str
    author: str
    node_id: str
    node_name: str | None
    created_at: int
    expires_at: int
    reply_to: str | None
    verified: bool


class Redaction(msgspec.Struct, frozen=True):
    """How many secrets of one kind were masked."""

    kind: str
    count: int


class Posted(msgspec.Struct, frozen=True):
    """The answer to a poster."""

    id: str
    redactions: tuple[Redaction, ...]
    related: tuple[PostView, ...]


class Page(msgspec.Struct, frozen=True):
    """Posts and where to go on; `next_cursor` None: that was all."""

    posts: tuple[PostView, ...]
    next_cursor: str | None


class NameCount(msgspec.Struct, frozen=True):
    """A topic or author with its live posts and the time of the last one."""

    name: str
    posts: int
    last_at: int


class BoardEvent(msgspec.Struct, frozen=True):
    """One event of the live stream: `post` or `retracted` with a post, or `dropped` (the subscriber was too slow).

    `id` is opaque and rises; a subscriber that gives the last one it saw gets what it missed.
    """

    event: str
    id: str
    post: PostView | None


# ------------------------------------------------------------------ what the blackboard needs


class Publisher(Protocol):
    """The mesh, as the blackboard uses it."""

    async def publish(self, kind: str, subkey: bytes, payload: bytes, lifetime_ms: int) -> Record:
        """Sign, store durably (through RecordStore.add) and spread a record of our own; it is on disk when this returns.

        Raises:
            QuotaExceeded: this node has used up its quota of the kind.
            StorageError: it could not be stored; nothing was spread.
            LookupError: a retraction's target is not here or not this node's.
        """
        ...

    def quota_retry_at_ms(self, kind: str, now_ms: int) -> int | None:
        """None while another record of the kind fits this node's quota, else the time at which one fits again."""
        ...


class ScrubbedText(Protocol):
    """A text with its secrets masked, and what was masked: kind -> count."""

    @property
    def text(self) -> str: ...

    @property
    def redactions(self) -> Sequence[ScrubbedKind]: ...


class ScrubbedKind(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def count(self) -> int: ...


class TextScrubber(Protocol):
    """The scrub worker's pool (scrub.py)."""

    async def scrub(self, text: str) -> ScrubbedText:
        """Mask a text that is about to be posted.

        Raises:
            InvalidInput: the text is mostly secret, or could not be checked in time.
        """
        ...

    async def scrub_many(self, texts: Sequence[str]) -> Sequence[ScrubbedText | None]:
        """Mask texts that are about to be shown, in order; None where one could not be checked."""
        ...
