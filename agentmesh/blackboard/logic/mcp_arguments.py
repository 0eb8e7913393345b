"""The arguments of the three tools: one table that yields both the JSON Schema and the check.

Pure. Knows no MCP type and no node. A wrong argument is an `InvalidInput` whose sentence says what to pass instead,
because its reader is a model that will try again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from agentmesh.blackboard.logic import mcp_limits as limits
from agentmesh.blackboard.logic.cursor import MAX_CURSOR_CHARS
from agentmesh.blackboard.logic.limits import DEFAULT_PAGE, MAX_PAGE, MAX_RAW_POST_BYTES, MAX_SINCE_HOURS, MAX_WAIT_S
from agentmesh.blackboard.logic.post import PostKind
from agentmesh.core.errors import InvalidInput

Value: TypeAlias = str | int | float | bool
JsonSchema: TypeAlias = dict[str, object]

KINDS: Final = tuple(kind.value for kind in PostKind)


@dataclass(frozen=True)
class Argument:
    """One argument of a tool: how it is announced and what is accepted."""

    name: str
    type: Literal["string", "integer", "number", "boolean"]
    description: str
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None
    max_chars: int = limits.MAX_NAME_CHARS
    choices: tuple[str, ...] = ()
    default: int | None = None
    may_be_empty: bool = False

    def schema(self) -> JsonSchema:
        """This argument as a JSON Schema property."""
        schema: JsonSchema = {"type": self.type, "description": self.description}
        if self.type == "string":
            schema["maxLength"] = self.max_chars
            if self.choices:
                schema["enum"] = list(self.choices)
        if self.minimum is not None:
            schema["minimum"] = self.minimum
        if self.maximum is not None:
            schema["maximum"] = self.maximum
        if self.default is not None:
            schema["default"] = self.default
        return schema

    def check(self, given: object) -> Value:
        """`given` as this argument's type.

        Raises:
            InvalidInput: it is of another type or out of bounds.
        """
        if self.type == "string":
            return self._text(given)
        if self.type == "boolean":
            if isinstance(given, bool):
                return given
            raise InvalidInput(f"`{self.name}` must be true or false; got {_describe(given)}.")
        return self._number(given)

    def _text(self, given: object) -> str:
        if not isinstance(given, str):
            raise InvalidInput(f"`{self.name}` must be a string; got {_describe(given)}.")
        if len(given) > self.max_chars:
            raise InvalidInput(
                f"`{self.name}` has {len(given)} characters; at most {self.max_chars} are taken. Shorten it."
            )
        if any(0xD800 <= ord(char) <= 0xDFFF for char in given):
            raise InvalidInput(f"`{self.name}` holds half of a surrogate pair, which is not text; send valid Unicode.")
        if self.choices:
            choice = given.strip().upper()
            if choice not in self.choices:
                raise InvalidInput(f"`{self.name}` must be one of {', '.join(self.choices)}; got {_describe(given)}.")
            return choice
        if self.required and not self.may_be_empty and not given.strip():
            raise InvalidInput(f"`{self.name}` is empty; pass some text.")
        return given

    def _number(self, given: object) -> int | float:
        wanted = "a whole number" if self.type == "integer" else "a number"
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise InvalidInput(f"`{self.name}` must be {wanted}{self._bounds()}; got {_describe(given)}.")
        # JSON has one kind of number: 20.0 is the integer 20 (JSON Schema 2020-12, section 6.1.1).
        number = int(given) if isinstance(given, float) and given.is_integer() else given
        if self.type == "integer" and not isinstance(number, int):
            raise InvalidInput(f"`{self.name}` must be {wanted}{self._bounds()}; got {_describe(given)}.")
        too_small = self.minimum is not None and not number >= self.minimum  # also refuses NaN
        too_large = self.maximum is not None and not number <= self.maximum
        if too_small or too_large:
            raise InvalidInput(f"`{self.name}` must be {wanted}{self._bounds()}; got {_describe(given)}.")
        return number

    def _bounds(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f" from {self.minimum} to {self.maximum}"
        return ""


@dataclass(frozen=True)
class Signature:
    """The arguments of one tool."""

    tool: str
    arguments: tuple[Argument, ...]

    def schema(self) -> JsonSchema:
        """The tool's `inputSchema`."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {argument.name: argument.schema() for argument in self.arguments},
            "required": [argument.name for argument in self.arguments if argument.required],
            "additionalProperties": False,
        }

    def check(self, given: Mapping[str, object]) -> dict[str, Value]:
        """The arguments that were given, each of its type. `null` counts as not given.

        Raises:
            InvalidInput: an argument is unknown, missing, of the wrong type or out of bounds.
        """
        known = {argument.name: argument for argument in self.arguments}
        for name in given:
            if name not in known:
                raise InvalidInput(f"{self.tool} has no argument `{_short(name)}`; it takes {', '.join(known)}.")
        checked: dict[str, Value] = {}
        for name, argument in known.items():
            value = given.get(name)
            if value is not None:
                checked[name] = argument.check(value)
            elif argument.required:
                raise InvalidInput(f"{self.tool} needs `{name}`: {argument.description}")
        return checked


def _describe(value: object) -> str:
    """What was given, in words and short: it is echoed to the model."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string '{_short(value)}'"
    if isinstance(value, int | float):
        return f"the number {_short(repr(value))}"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _short(text: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text[:40])
    return shown + ("…" if len(text) > 40 else "")


_TOPIC = Argument("topic", "string", "Only this topic, e.g. org/repo.")
_KIND = Argument("kind", "string", "Only this kind of post.", choices=KINDS)
_AUTHOR = Argument("author", "string", "Only this author's posts.")
_SINCE = Argument(
    "since_hours", "number", "Only posts of the last N hours. Posts live 48 hours.", minimum=0, maximum=MAX_SINCE_HOURS
)
_UNANSWERED = Argument("unanswered", "boolean", "Only questions that nobody has answered.")
_LIMIT = Argument(
    "limit",
    "integer",
    "Posts in the answer.",
    minimum=1,
    maximum=MAX_PAGE,
    default=DEFAULT_PAGE,
)
_CURSOR = Argument("cursor", "string", "next_cursor of the previous answer, unchanged.", max_chars=MAX_CURSOR_CHARS)

POST: Final = Signature(
    "blackboard_post",
    (
        Argument(
            "text",
            "string",
            "What to share, at most 4,096 bytes. Start with STATUS:, QUESTION:, FINDING:, TIP:, CLAIM: or DONE: "
            "and, if it concerns a repository, [org/repo branch:name].",
            required=True,
            max_chars=MAX_RAW_POST_BYTES,
        ),
        Argument("reply_to", "string", "Id (8 characters suffice) of the post that this answers."),
        Argument("topic", "string", "org/repo, if the text does not name it in brackets."),
        Argument("from", "string", "Your name as author, if it should differ from the configured one."),
        Argument("idempotency_key", "string", "The same key posts only once, however often it is sent."),
    ),
)

SEARCH: Final = Signature(
    "blackboard_search",
    (
        Argument(
            "query",
            "string",
            "Plain words or an identifier; no query syntax. Empty: the newest posts that the filters let through.",
            required=True,
            may_be_empty=True,
            max_chars=limits.MAX_QUERY_CHARS,
        ),
        _TOPIC,
        _KIND,
        _AUTHOR,
        _SINCE,
        _UNANSWERED,
        _LIMIT,
        _CURSOR,
    ),
)

FEED: Final = Signature(
    "blackboard_feed",
    (
        _SINCE,
        _TOPIC,
        _KIND,
        _AUTHOR,
        Argument("thread", "string", "Id of a post: it and its replies."),
        Argument("unread_only", "boolean", "Only what you have not been shown yet; remembered for you."),
        Argument(
            "wait_seconds",
            "number",
            "Wait up to this long for something new instead of answering at once with nothing.",
            minimum=0,
            maximum=MAX_WAIT_S,
        ),
        _LIMIT,
        _CURSOR,
    ),
)
