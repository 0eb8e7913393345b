"""What holds a conversation together: a short key from a request's body, the same for every turn of it. Pure.

The request's `user` (Anthropic: `metadata.user_id`), else its `session_id` (or OpenAI's `prompt_cache_key`), else the conversation's
beginning: the system prompt and all up to the first user's message. Only texts count: clients move marks such as `cache_control` about from
turn to turn. Asked for only when a model's hosts are shards (logic/expert_sessions.py); a body of any size and form costs little.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Final, cast

import msgspec

MAX_BEGINNING_CHARS: Final = 64 * 1024  # of a conversation; agents' system prompts have some 10,000
MAX_MESSAGES: Final = 16  # that may come before the first of a user
PROMPT_CHARS: Final = 256  # of a text that is no conversation, and that may grow from turn to turn
KEY_BYTES: Final = 16

_GAP: Final = re.compile(r"[\s,]*")
_value = json.JSONDecoder().raw_decode
_NOTHING: Final = msgspec.Raw()


class _Body(msgspec.Struct, gc=False):
    """Nothing in it is read on the way: only where each value lies."""

    user: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING
    session_id: msgspec.Raw = _NOTHING
    prompt_cache_key: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def session_key(body: bytes | memoryview) -> bytes:
    """The key of the conversation, KEY_BYTES long; of a body that is no JSON object, the same one for all such."""
    try:
        asked = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _key("", "")
    for name, raw in (("user", asked.user), ("user", _member(asked.metadata, "user_id"))):
        if (text := _text_value(raw)) is not None:
            return _key(name, text)
    for raw in (asked.session_id, asked.prompt_cache_key):
        if (text := _text_value(raw)) is not None:
            return _key("session", text)
    return _key("beginning", "\0".join(_beginning(asked)))


def _beginning(asked: _Body) -> Iterator[str]:
    for raw in (asked.system, asked.instructions):
        yield from _texts(_whole(raw))
    items = asked.messages or asked.input
    text = _start(items).lstrip()
    if not text.startswith("["):
        yield (text or _start(asked.prompt))[:PROMPT_CHARS]
        return
    for item in _items(text):
        if not isinstance(item, dict):
            yield text[:PROMPT_CHARS]  # tokens, or several texts
            return
        message = cast("dict[str, object]", item)
        role = message.get("role")
        yield str(role)
        yield from _texts(message.get("content"))
        if role == "user":
            return


def _items(text: str) -> Iterator[object]:
    """The first elements of the JSON array that begins there; of one that is cut, its beginning as it stands."""
    at = 1
    for _ in range(MAX_MESSAGES):
        at = cast("re.Match[str]", _GAP.match(text, at)).end()
        if text[at : at + 1] in ("", "]"):
            return
        try:
            item, at = _value(text, at)
        except (ValueError, RecursionError):
            yield {"role": "user", "content": text[at : at + PROMPT_CHARS]}
            return
        yield item


def _texts(content: object) -> Iterator[str]:
    """What is said in a message's content: a text, or parts of which some have one."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            said = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else part
            if isinstance(said, str):
                yield said


def _whole(raw: msgspec.Raw) -> object:
    """A value that is small enough, else its beginning as a text."""
    text = _start(raw)
    try:
        return _value(text, 0)[0] if text else None
    except (ValueError, RecursionError):
        return text


def _member(raw: msgspec.Raw, name: str) -> msgspec.Raw:
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get(name, _NOTHING) if _is_small(raw) else _NOTHING
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _NOTHING


def _text_value(raw: msgspec.Raw) -> str | None:
    """A text that is not empty."""
    value = _whole(raw)
    return value if isinstance(value, str) and value else None


def _start(raw: msgspec.Raw) -> str:
    return str(memoryview(raw)[:MAX_BEGINNING_CHARS], "utf-8", "replace")


def _is_small(raw: msgspec.Raw) -> bool:
    return 0 < memoryview(raw).nbytes <= MAX_BEGINNING_CHARS


def _key(kind: str, text: str) -> bytes:
    data = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()
