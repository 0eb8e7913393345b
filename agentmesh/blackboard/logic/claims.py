"""Claims ("I am changing src/billing/**"): which paths a text names, which claims overlap, and which a DONE ends.

A claim is advice, not a lock: nothing is refused because of one.
"""

from __future__ import annotations

import re

from agentmesh.blackboard.logic.limits import MAX_CLAIM_PATHS, MAX_PATH_SEGMENTS
from agentmesh.blackboard.logic.post import PostKind
from agentmesh.blackboard.logic.query import PostRow

_BRACKET = re.compile(r"\[[^\]]*\]")
_TOKEN = re.compile(r"[^\s,;:()\[\]<>`'\"]+")
# A path has a slash, a wildcard, or a file's ending: one to eight letters or digits after a dot, not a number.
_FILE = re.compile(r"[\w*?-][\w.*?-]*\.(?=[A-Za-z])[A-Za-z0-9]{1,8}")


def claimed_paths(text: str) -> tuple[str, ...]:
    """The paths and globs that a text names, in order, without repeats. URLs and a leading `[org/repo]` are no paths."""
    found: dict[str, None] = {}
    for token in _TOKEN.findall(_BRACKET.sub(" ", text, count=1)):
        path = token.strip().rstrip(".!?").removeprefix("./").strip("/") if "//" not in token else ""
        if path and ("/" in path or "*" in path or _FILE.fullmatch(path)) and set(path) - set("/*.?"):
            found.setdefault(path)
        if len(found) == MAX_CLAIM_PATHS:
            break
    return tuple(found)


def paths_overlap(one: str, other: str) -> bool:
    """Whether some file could be meant by both. A folder means everything below it."""
    return _segments_overlap(_segments(one), _segments(other))


def _segments(path: str) -> list[str]:
    segments = path.split("/")[:MAX_PATH_SEGMENTS]
    is_folder = "*" not in segments[-1] and not _FILE.fullmatch(segments[-1])
    return [*segments, "**"] if is_folder else segments


def _segments_overlap(one: list[str], other: list[str]) -> bool:
    # reachable[j]: what is read of `one` and the first j segments of `other` can stand for the same segments.
    reachable = [all(s == "**" for s in other[:j]) for j in range(len(other) + 1)]
    for mine in one:
        before = reachable
        reachable = [mine == "**" and before[0]]
        for j, theirs in enumerate(other):
            both = before[j] and _names_overlap(mine, theirs)
            mine_many = mine == "**" and (before[j + 1] or reachable[j])
            theirs_many = theirs == "**" and (reachable[j] or before[j + 1])
            reachable.append(both or mine_many or theirs_many)
    return reachable[-1]


def _names_overlap(one: str, other: str) -> bool:
    """Whether two names with `*` and `?` have a name in common."""
    if not any(c in "*?" for c in one + other):
        return one == other
    reachable = [all(c == "*" for c in other[:j]) for j in range(len(other) + 1)]
    for mine in one:
        before = reachable
        reachable = [mine == "*" and before[0]]
        for j, theirs in enumerate(other):
            both = before[j] and (mine == theirs or mine in "*?" or theirs in "*?")
            mine_many = mine == "*" and (before[j + 1] or reachable[j])
            theirs_many = theirs == "*" and (reachable[j] or before[j + 1])
            reachable.append(both or mine_many or theirs_many)
    return reachable[-1]


def claims_overlap(text: str, topic: str | None, other_text: str, other_topic: str | None) -> bool:
    """Whether two claims could get in each other's way: same or unknown topic, and paths in common.

    A claim that names no path claims its whole topic.
    """
    if topic is not None and other_topic is not None and topic.casefold() != other_topic.casefold():
        return False
    mine, theirs = claimed_paths(text), claimed_paths(other_text)
    if not mine or not theirs:
        return topic is not None and other_topic is not None
    return any(paths_overlap(a, b) for a in mine for b in theirs)


def ends_claim(done: PostRow, claim: PostRow) -> bool:
    """Whether a DONE ends a claim: same node and author, later, and a reply to it or about the same paths and topic."""
    if done.kind != PostKind.DONE or claim.kind != PostKind.CLAIM:
        return False
    if done.node != claim.node or done.created_ms < claim.created_ms:
        return False
    if done.reply_to is not None:
        return done.reply_to == claim.id
    if done.author.casefold() != claim.author.casefold():
        return False
    if (done.topic or "").casefold() != (claim.topic or "").casefold():
        return False
    paths, claimed = claimed_paths(done.text), claimed_paths(claim.text)
    return not paths or not claimed or any(paths_overlap(a, b) for a in paths for b in claimed)
