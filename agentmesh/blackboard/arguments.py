"""The arguments that every face hands in, checked once for all of them."""

from __future__ import annotations

from agentmesh.blackboard.logic.limits import MAX_PAGE, MAX_READER_CHARS, MAX_SINCE_HOURS, MAX_WAIT_S
from agentmesh.blackboard.logic.post import check_kind, check_topic, is_utf8
from agentmesh.blackboard.logic.query import Filters
from agentmesh.blackboard.store import BlackboardStore
from agentmesh.core.errors import InvalidInput
from agentmesh.core.units import HOUR_MS


async def filters_of(
    store: BlackboardStore,
    now_ms: int,
    *,
    topic: str | None,
    kind: str | None,
    author: str | None,
    since_hours: float | None,
    thread: str | None,
    unanswered: bool,
) -> Filters:
    """The filters as they were asked for; an empty text is no filter.

    Raises:
        InvalidInput: one of them cannot be used.
        NotFound, Ambiguous: `thread` is no one post.
    """
    if since_hours is not None and not 0 < since_hours <= MAX_SINCE_HOURS:
        raise InvalidInput(f"since_hours is more than 0 and at most {MAX_SINCE_HOURS:,}.")
    if author is not None and not is_utf8(author):
        raise InvalidInput("The author's name is not valid UTF-8.")
    return Filters(
        topic=check_topic(topic) if topic else None,
        kind=str(check_kind(kind)) if kind else None,
        author=author.strip() if author and author.strip() else None,
        since_ms=None if since_hours is None else int(now_ms - since_hours * HOUR_MS),
        unanswered=unanswered,
        thread=(await store.find(thread)).id if thread else None,
    )


def checked_limit(limit: int) -> int:
    """How many posts are wanted.

    Raises:
        InvalidInput: none or too many.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit is 1 to {MAX_PAGE}.")
    return limit


def checked_wait_s(seconds: float) -> float:
    """How long a caller waits for something new.

    Raises:
        InvalidInput: longer than its own client would.
    """
    if not 0 <= seconds <= MAX_WAIT_S:
        raise InvalidInput(f"wait_seconds is 0 to {MAX_WAIT_S}.")
    return seconds


def checked_reader(reader: str | None) -> str:
    """Who reads: the unread position is kept under this name.

    Raises:
        InvalidInput: nobody, or a name too long.
    """
    name = (reader or "").strip()
    if not name or len(name) > MAX_READER_CHARS or not is_utf8(name):
        raise InvalidInput(f"unread_only needs to know who reads: give reader, at most {MAX_READER_CHARS} characters.")
    return name
