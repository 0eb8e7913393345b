"""What a poster should see at once: claims in the way, the same question asked before, what else was said in the thread."""

from __future__ import annotations

import re
from typing import Final

from agentmesh.blackboard.logic.claims import claims_overlap
from agentmesh.blackboard.logic.limits import MAX_QUERY_TERMS, MAX_RELATED
from agentmesh.blackboard.logic.post import PostKind, PostPayload
from agentmesh.blackboard.logic.query import Filters, PostRow
from agentmesh.blackboard.store import BlackboardStore

_WORD: Final = re.compile(r"\w{4,}")  # shorter words are in every question
_CANDIDATES: Final = 20
_HEADING: Final = frozenset({"question", "branch"})


async def related_posts(store: BlackboardStore, post: PostPayload, own_node: bytes) -> list[PostRow]:
    """At most five posts on the same claim, question or thread as a post that is about to be made."""
    if post.kind == PostKind.CLAIM:
        rows = await _claims_in_the_way(store, post, own_node)
    elif post.reply_to is not None:
        rows, _ = await store.feed(Filters(thread=post.reply_to), MAX_RELATED, None)
    elif post.kind == PostKind.QUESTION:
        rows = await _same_question(store, post)
    else:
        rows = []
    return rows[:MAX_RELATED]


async def _claims_in_the_way(store: BlackboardStore, post: PostPayload, own_node: bytes) -> list[PostRow]:
    author = post.author.casefold()
    return [
        row
        for row in await store.open_claims()
        if not (row.node == own_node and row.author.casefold() == author)
        and claims_overlap(post.text, post.topic, row.text, row.topic)
    ]


async def _same_question(store: BlackboardStore, post: PostPayload) -> list[PostRow]:
    """Questions that share at least half of the new one's longer words, and two."""
    words = _words(post.text)
    if len(words) < 2:
        return []
    query = " ".join(sorted(words, key=lambda word: (-len(word), word))[:MAX_QUERY_TERMS])
    found = await store.search(query, Filters(kind=PostKind.QUESTION), _CANDIDATES, None)
    return [row for row in found.rows if len(words & _words(row.text)) >= max(2, len(words) / 2)]


def _words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORD.findall(text)) - _HEADING
