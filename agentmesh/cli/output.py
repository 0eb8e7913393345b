"""How the command line prints: results on stdout, everything else on stderr, other people's words without control characters.

Owns the look of posts and errors; calls nothing.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import click

from agentmesh.blackboard.logic.hidden import name_in_heading, readable

# C0 and C1 controls could move the cursor, set the title or hide text; bidirectional overrides reorder what is read
# (Unicode TR 36). Line breaks and tabs stay.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_KIND_COLOURS: Final = {
    "STATUS": "cyan",
    "QUESTION": "yellow",
    "FINDING": "green",
    "TIP": "green",
    "DONE": "blue",
    "CLAIM": "magenta",
}
SHORT_ID_CHARS: Final = 8


def safe(text: object) -> str:
    """`text` as it may be shown in a terminal, whoever wrote it."""
    return readable(_UNSAFE.sub("\ufffd", str(text)))


def bytes_text(size_bytes: int) -> str:
    """`4.7 GB`, or below one GB `146 MB`."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def safe_line(text: object) -> str:
    """The same on one line."""
    return safe(text).replace("\n", " ").replace("\t", " ")


def emit_json(value: object) -> None:
    """One JSON value on one line of stdout. JSON escapes control characters by itself, and what the terminal cannot show."""
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    click.echo(json.dumps(value, ensure_ascii=not unicode))


def note(text: str) -> None:
    """Something the user should know besides the result."""
    click.echo(f"agentmesh: {safe(text)}", err=True)


def age(then_ms: int, now_ms: int) -> str:
    """How long ago, in the largest unit that says something."""
    seconds = max(0, now_ms - then_ms) // 1000
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "now" if seconds < 5 else f"{seconds} s ago"


def show_posts(posts: Sequence[Mapping[str, Any]]) -> None:
    """Posts for people: a heading with what is known for sure, then the text, indented."""
    now_ms = time.time_ns() // 1_000_000
    for post in posts:
        click.echo(post_heading(post, now_ms))
        for line in safe(post.get("text", "")).split("\n"):
            click.echo(f"    {line}")


def post_heading(post: Mapping[str, Any], now_ms: int) -> str:
    """`1f3a90bc QUESTION org/repo  ada (node k5v7wq2m)  3 min ago  in reply to 77ab…`."""
    kind = safe_line(post.get("kind", ""))
    parts = [
        click.style(str(post.get("id", ""))[:SHORT_ID_CHARS], bold=True)
        + " "
        + click.style(kind, _KIND_COLOURS.get(kind)),
        safe_line(post.get("topic") or ""),
        f"{name_in_heading(safe_line(post.get('author', '')))} (node {safe_line(post.get('node_id', ''))[:SHORT_ID_CHARS]})",
        click.style(age(int(post.get("created_at", now_ms)), now_ms), dim=True),
    ]
    if post.get("reply_to"):
        parts.append(click.style(f"in reply to {safe_line(post['reply_to'])[:SHORT_ID_CHARS]}", dim=True))
    if post.get("verified") is False:
        parts.append(click.style("NOT VERIFIED", fg="red"))
    return "  ".join(part for part in parts if part)


def show_page(page: Mapping[str, Any], *, as_json: bool) -> None:
    """A page of the feed or of a search."""
    if as_json:
        emit_json(page)
        return
    posts = cast("list[Mapping[str, Any]]", page.get("posts") or [])
    if not posts:
        note("no posts")
    show_posts(posts)
    if page.get("next_cursor"):
        note(f"there is more: --cursor {page['next_cursor']}")


def fail(message: str) -> None:
    """Say on stderr why a command did not do what was asked."""
    print(f"agentmesh: {safe(message)}", file=sys.stderr, flush=True)
