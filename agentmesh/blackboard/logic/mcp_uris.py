"""The resource addresses of the board, both ways. Pure.

`blackboard://feed`, `blackboard://post/{id}`, `blackboard://topic/{topic}`. A topic holds a slash; RFC 6570 writes it
`%2F` in `{topic}`, people and models write it as it is, so both are read and both are told of changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote, unquote

from agentmesh.blackboard.logic.mcp_text import SHORT_ID_CHARS
from agentmesh.blackboard.ports import PostView

FEED_URI: Final = "blackboard://feed"
POST_TEMPLATE: Final = "blackboard://post/{id}"
TOPIC_TEMPLATE: Final = "blackboard://topic/{topic}"
_POST: Final = "blackboard://post/"
_TOPIC: Final = "blackboard://topic/"


@dataclass(frozen=True)
class Address:
    """What a resource address names."""

    kind: Literal["feed", "post", "topic"]
    name: str = ""


def parse(uri: str) -> Address | None:
    """What `uri` names, or None if it is not one of ours."""
    if uri.rstrip("/") == FEED_URI:
        return Address("feed")
    if uri.startswith(_POST) and (post_id := unquote(uri.removeprefix(_POST)).strip()):
        return Address("post", post_id)
    if uri.startswith(_TOPIC) and (topic := unquote(uri.removeprefix(_TOPIC)).strip()):
        return Address("topic", topic)
    return None


def changed_by(post: PostView) -> tuple[str, ...]:
    """The addresses whose content changes when `post` arrives or goes, in every way that a client may write them."""
    uris = [FEED_URI]
    for post_id in (post.id, post.reply_to):
        if post_id:
            uris += [_POST + post_id, _POST + post_id[:SHORT_ID_CHARS]]
    if post.topic:
        uris += [_TOPIC + post.topic, _TOPIC + quote(post.topic, safe="")]
    return tuple(dict.fromkeys(uris))
