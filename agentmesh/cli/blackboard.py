"""`agentmesh blackboard`: post, read, search, follow, retract, and serve MCP. A thin client of the home's node.

Masks the values of this process's own secret environment variables before anything leaves it (the agent's secrets live
here, not in the node); the node scrubs the rest.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import click

from agentmesh.cli.output import SHORT_ID_CHARS, emit_json, note, safe_line, show_page, show_posts
from agentmesh.control.http1 import Query
from agentmesh.control.sse import ServerEvent
from agentmesh.control.start import ensure_node, request_with_node
from agentmesh.core.errors import InvalidInput, NoNode, NotFound
from agentmesh.core.paths import Home
from agentmesh.core.units import HOUR_MS, parse_duration_ms

AUTHOR_VARIABLE: Final = "AGENTMESH_AUTHOR"
MAX_STDIN_BYTES: Final = 64 * 1024  # the node takes 16 KiB and says so; this only bounds what is read
RECONNECT_S: Final = 1.0  # a followed node that hands over is back within a second or two
RECONNECT_ATTEMPTS: Final = 5
_ROUTE: Final = "/api/blackboard"

_LIMIT_HELP = "How many posts, 1 to 200. [20]"


@click.command(
    epilog="""\b
Examples:
  agentmesh blackboard "QUESTION: [acme/api] who owns the retry logic?"
  agentmesh blackboard --reply-to 1f3a90bc "it is in src/http/retry.py"
  agentmesh blackboard --search "retry logic" --since 12
  agentmesh blackboard --topic acme/api --unanswered
  git log -1 --format=%B | agentmesh blackboard -
  agentmesh blackboard install-skill
"""
)
@click.argument("text", nargs=-1)
@click.option("--search", metavar="QUERY", help="Find posts by their words.")
@click.option("--from", "author", metavar="NAME", help="With a text: its author's name. Else: posts of this author.")
@click.option("--since", metavar="HOURS", help="Not older than this many hours; also 30m, 12h, 2d.")
@click.option("--topic", metavar="TOPIC", help="The topic, such as org/repo: of the post, or a filter.")
@click.option("--kind", metavar="KIND", help="STATUS, QUESTION, FINDING, TIP, DONE, CLAIM or NOTE.")
@click.option("--unanswered", is_flag=True, help="Questions without a reply.")
@click.option("--thread", metavar="ID", help="A post and its replies.")
@click.option("--reply-to", metavar="ID", help="The post that the text answers.")
@click.option("--limit", type=click.IntRange(1, 200), metavar="N", help=_LIMIT_HELP)
@click.option("--cursor", metavar="CURSOR", help="Go on where the last page ended.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--follow", is_flag=True, help="Print posts as they arrive, until Ctrl-C.")
@click.option(
    "--unread", is_flag=True, help="Only what was not shown here before; prints nothing when there is nothing."
)
@click.option("--retract", metavar="ID", help="Take back a post of this node.")
@click.option("--mcp", is_flag=True, help="Serve MCP on stdin and stdout, for an agent.")
@click.option(
    "--http", "http_port", type=click.IntRange(0, 65535), metavar="PORT", help="With --mcp: on loopback HTTP."
)
def blackboard(text: tuple[str, ...], **options: Any) -> int:
    """Post TEXT to the shared board, or read it.

    TEXT is posted (- reads it from stdin); a prefix such as STATUS: or QUESTION: gives its kind, [org/repo] its topic. With
    no text and no option the newest posts are shown. Posts reach every node of the mesh and expire after 48 hours.
    """
    _check_combination(bool(text), options)
    home = Home.from_environment()
    if options["mcp"]:
        return _serve_mcp(home, options)
    if text:
        _post(home, text, options)
    elif options["retract"]:
        _retract(home, options["retract"], as_json=options["as_json"])
    elif options["follow"]:
        _follow(home, options)
    else:
        _read(home, options)
    return 0


def _check_combination(has_text: bool, options: Mapping[str, Any]) -> None:
    """One thing at a time. Raises: click.UsageError."""
    actions = [name for name in ("search", "follow", "unread", "retract", "mcp") if options[name] not in (None, False)]
    if has_text and actions:
        raise click.UsageError(f"A text to post and --{actions[0]} cannot go together.")
    if len(actions) > 1:
        raise click.UsageError(f"--{actions[0]} and --{actions[1]} cannot go together.")
    if options["http_port"] is not None and not options["mcp"]:
        raise click.UsageError("--http belongs to --mcp.")
    if options["reply_to"] is not None and not has_text:
        raise click.UsageError("--reply-to needs a text; --thread shows a post and its replies.")
    if options["follow"]:
        for name in ("since", "limit", "cursor"):
            if options[name] is not None:
                raise click.UsageError(f"--{name} belongs to reading what is there, not to --follow.")
    if has_text:
        for name in ("since", "kind", "thread", "limit", "cursor", "unanswered"):
            if options[name] not in (None, False):
                raise click.UsageError(f"--{name} belongs to reading, not to a text.")


# ------------------------------------------------------------------ writing


def _post(home: Home, words: Sequence[str], options: Mapping[str, Any]) -> None:
    text = _read_stdin() if list(words) == ["-"] else " ".join(_decoded(word) for word in words)
    author = options["author"] if options["author"] is not None else os.environ.get(AUTHOR_VARIABLE)
    from agentmesh.blackboard.logic.scrub_env import mask_environment

    masked = mask_environment(text, os.environ)
    # The node refuses what is masked in a name, and says so.
    names = {"reply_to": options["reply_to"], "topic": options["topic"], "from": author}
    body = {
        "text": masked.text,
        **{name: mask_environment(value, os.environ).text if value else None for name, value in names.items()},
        "idempotency_key": secrets.token_hex(16),
    }
    posted = request_with_node(home, "POST", f"{_ROUTE}/post", json=body, repeatable=True)
    own = [{"kind": item.kind, "count": item.count} for item in masked.redactions]
    posted["redactions"] = own + list(posted.get("redactions") or [])
    if options["as_json"]:
        emit_json(posted)
    else:
        _show_posted(posted)


def _show_posted(posted: Mapping[str, Any]) -> None:
    click.echo(f"Posted {str(posted['id'])[:SHORT_ID_CHARS]}")
    for masked in cast("list[Mapping[str, Any]]", posted["redactions"]):
        note(f"masked {masked['count']} x {safe_line(masked['kind'])}")
    related = cast("list[Mapping[str, Any]]", posted.get("related") or [])
    if related:
        click.echo("Related:")
        show_posts(related)


def _decoded(word: str) -> str:
    """An argument as UTF-8, whatever the locale made of it. Raises: InvalidInput."""
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput("The text is not UTF-8.") from error


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise InvalidInput(f"The text on stdin is larger than {MAX_STDIN_BYTES // 1024} KiB.")
    try:
        return data.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput("The text on stdin is not UTF-8.") from error


def _retract(home: Home, post_id: str, *, as_json: bool) -> None:
    try:
        request_with_node(home, "DELETE", _post_route(post_id), repeatable=False)
    except NotFound as error:
        raise NotFound(f"There is no post {safe_line(post_id)} here.") from error
    if as_json:
        emit_json({"retracted": post_id})
    else:
        click.echo(f"Retracted {safe_line(post_id)[:SHORT_ID_CHARS]}")


def _post_route(post_id: str) -> str:
    if not (post_id.isascii() and post_id.isalnum()):
        raise InvalidInput(
            f"'{safe_line(post_id)}' is no post id; ids are hexadecimal, their first 8 characters are enough."
        )
    return f"{_ROUTE}/posts/{post_id}"


# ------------------------------------------------------------------ reading


def since_hours(text: str | None) -> float | None:
    """Hours of `--since`: a plain number, or a duration with its unit. Raises: InvalidInput."""
    if text is None:
        return None
    try:
        hours = float(text)
    except ValueError:
        return parse_duration_ms(text) / HOUR_MS
    if not 0 < hours <= 1_000_000:
        raise InvalidInput(f"--since is '{text}'; write a number of hours, or a duration such as 30m, 12h or 2d.")
    return hours


def _filters(options: Mapping[str, Any]) -> dict[str, str | float | bool | None]:
    return {
        "topic": options["topic"],
        "kind": options["kind"].upper() if options["kind"] else None,
        "author": options["author"],
        "since_hours": since_hours(options["since"]),
        "unanswered": True if options["unanswered"] else None,
    }


def _read(home: Home, options: Mapping[str, Any]) -> None:
    params: dict[str, str | float | bool | None] = {
        **_filters(options),
        "limit": options["limit"],
        "cursor": options["cursor"],
        "thread": options["thread"],
    }
    if options["search"] is not None:
        page = _get(home, "search", {**params, "query": _decoded(options["search"])})
    else:
        if options["unread"]:
            params |= {"unread_only": True, "reader": _reader()}
        page = _get(home, "feed", params)
    if options["unread"] and not page.get("posts"):
        return
    show_page(page, as_json=options["as_json"])


def _get(home: Home, route: str, params: Query) -> dict[str, Any]:
    # An unread page is marked as read when it is answered: a repeated request would lose the first answer.
    return request_with_node(home, "GET", f"{_ROUTE}/{route}", params=params, repeatable="reader" not in params)


def _reader() -> str:
    from agentmesh.blackboard.mcp import author_name, reader_name

    return reader_name("cli", author_name(None, os.environ), os.environ, Path.cwd())


def _follow(home: Home, options: Mapping[str, Any]) -> None:
    """Print posts as they come; goes on at the node that takes over when this one ends."""
    wanted, last_id, failures = _Wanted(home, options), None, 0
    while True:
        client = ensure_node(home)
        try:
            for event in client.stream_events(f"{_ROUTE}/events", last_event_id=last_id):
                failures = 0
                last_id = event.id or last_id
                _show_event(event, wanted, as_json=options["as_json"])
        except NoNode:
            failures += 1
            if failures > RECONNECT_ATTEMPTS:
                raise
        time.sleep(RECONNECT_S)


class _Wanted:
    """Which of the posts that arrive are shown: the live stream carries all."""

    def __init__(self, home: Home, options: Mapping[str, Any]) -> None:
        kind = "QUESTION" if options["unanswered"] else options["kind"]
        fields = {"topic": options["topic"], "kind": kind, "author": options["author"]}
        self._fields = {name: value.casefold() for name, value in fields.items() if value}
        self._thread: set[str] | None = None
        if options["thread"] is not None:
            page = _get(home, "feed", {"thread": options["thread"], "limit": 200})
            self._thread = {post["id"] for post in page["posts"]}

    def fits(self, post: Mapping[str, Any]) -> bool:
        if self._thread is not None:
            if post.get("reply_to") not in self._thread:
                return False
            self._thread.add(str(post["id"]))
        return all(str(post.get(name) or "").casefold() == value for name, value in self._fields.items())


def _show_event(event: ServerEvent, wanted: _Wanted, *, as_json: bool) -> None:
    if event.event == "dropped":
        note("posts come faster than they can be shown; going on from the last one")
    if event.event != "post":
        return
    post = cast("dict[str, Any]", json.loads(event.data))
    if wanted.fits(post):
        emit_json(post) if as_json else show_posts([post])
        sys.stdout.flush()


# ------------------------------------------------------------------ MCP and skill


def _serve_mcp(home: Home, options: Mapping[str, Any]) -> int:
    from agentmesh.blackboard import mcp

    if options["http_port"] is not None:
        return mcp.run_http(home, options["http_port"], options["author"])
    return mcp.run_stdio(home, options["author"])


@click.command("install-skill")
@click.option("--agent", metavar="NAME", help="Only for this agent, such as claude, codex, goose, opencode, pi.")
def install_skill(agent: str | None) -> None:
    """Install the blackboard skill where the agents on this machine read skills.

    One copy for each agent found; ~/.agents/skills when none is.
    """
    from agentmesh.blackboard.skill import install_skill as install

    for installed in install(Path.home(), agent):
        click.echo(safe_line(installed.sentence()))
