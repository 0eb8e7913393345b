"""Changes one member of a JSON text and leaves every other byte as it is: comments, order, spelling of numbers.

Pure. Reads strict JSON, or with `relaxed` also comments and trailing commas, which some agents allow in their files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

MAX_DEPTH: Final = 100
INDENT: Final = "  "


class BadText(ValueError):
    """The text does not parse; `line` and `column` count from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.reason, self.line, self.column = reason, line, column


@dataclass(slots=True)
class _Node:
    """A value and where it stands: `text[start:end]`. Members of an object by name (of equal names the last, as parsers do)."""

    value: Any
    start: int
    end: int
    members: dict[str, _Node] = field(default_factory=dict[str, "_Node"])
    is_object: bool = False
    inner_end: int = 0  # of an object: after its last member and that one's trailing comma
    has_trailing_comma: bool = False
    first_key: int = -1


def parse(text: str, *, relaxed: bool = False) -> Any:
    """The value. Raises: BadText."""
    return _Reader(text, relaxed=relaxed).document().value


def set_member(text: str | None, path: Sequence[str], value: object, *, relaxed: bool = False) -> str:
    """The text with the member at `path` set to `value`; objects on the way are made. None or blank text is a new object.

    Raises: BadText: it does not parse, or something on the way is no object.
    """
    if text is None or not text.strip("\ufeff \t\r\n"):
        for name in reversed(path):
            value = {name: value}
        return json.dumps(value, indent=INDENT, ensure_ascii=False) + "\n"
    reader = _Reader(text, relaxed=relaxed)
    node, depth = reader.document(), 0
    while True:
        if not node.is_object:
            reader.fail(f"'{'.'.join(path[:depth]) or 'the whole'}' must be an object", node.start)
        child = node.members.get(path[depth])
        if child is None:
            return _insert(text, node, path[depth:], value, depth)
        depth += 1
        if depth == len(path):
            if child.value == value:
                return text
            return text[: child.start] + _dump(value, _indent_at(text, child.start, depth)) + text[child.end :]
        node = child


def _insert(text: str, node: _Node, path: Sequence[str], value: object, depth: int) -> str:
    for name in reversed(path[1:]):
        value = {name: value}
    inner = _indent_at(text, node.first_key, depth + 1) if node.first_key >= 0 else INDENT * (depth + 1)
    member = f"{json.dumps(path[0], ensure_ascii=False)}: {_dump(value, inner)}"
    if node.first_key < 0:
        before = text[: node.inner_end].rstrip(" \t")  # what stands in an empty object is a comment
        line_break = "" if before.endswith("\n") else "\n"
        return before + f"{line_break}{inner}{member}\n{INDENT * depth}" + text[node.inner_end :]
    comma = "" if node.has_trailing_comma else ","
    return text[: node.inner_end] + f"{comma}\n{inner}{member}" + text[node.inner_end :]


def _dump(value: object, indent: str) -> str:
    step = "\t" if indent.startswith("\t") else INDENT
    return json.dumps(value, indent=step, ensure_ascii=False).replace("\n", "\n" + indent)


def _indent_at(text: str, position: int, depth: int) -> str:
    """The white space before the line of `position`, if nothing else but a key stands before it there."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    before = line[: len(line) - len(line.lstrip(" \t"))]
    return before if before or depth == 0 else INDENT * depth


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_not_json)


class _Reader:
    def __init__(self, text: str, *, relaxed: bool) -> None:
        self._text = text
        self._relaxed = relaxed
        self._at = 0

    def fail(self, reason: str, position: int) -> NoReturn:
        before = self._text[:position]
        raise BadText(reason, before.count("\n") + 1, position - before.rfind("\n"))

    def document(self) -> _Node:
        if self._text.startswith("\ufeff"):
            self._at = 1
        node = self._value(0)
        self._blank()
        if self._at < len(self._text):
            self.fail("there is more after the end", self._at)
        return node

    def _blank(self) -> None:
        text = self._text
        while self._at < len(text):
            if text[self._at] in " \t\r\n":
                self._at += 1
            elif self._relaxed and text.startswith("//", self._at):
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif self._relaxed and text.startswith("/*", self._at):
                end = text.find("*/", self._at + 2)
                if end < 0:
                    self.fail("the comment does not end", self._at)
                self._at = end + 2
            else:
                return

    def _peek(self) -> str:
        self._blank()
        return self._text[self._at : self._at + 1]

    def _value(self, depth: int) -> _Node:
        character = self._peek()
        if depth > MAX_DEPTH:
            self.fail("too deep", self._at)
        if character == "{":
            return self._object(depth)
        if character == "[":
            return self._array(depth)
        return self._scalar()

    def _scalar(self) -> _Node:
        start = self._at
        try:
            value, self._at = _DECODER.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            self.fail(error.msg[:1].lower() + error.msg[1:], error.pos)
        except ValueError as error:
            self.fail(str(error), start)
        return _Node(value, start, self._at)

    def _array(self, depth: int) -> _Node:
        start, items = self._at, cast("list[Any]", [])
        self._at += 1
        while self._peek() != "]":
            items.append(self._value(depth + 1).value)
            if not self._comma("]"):
                break
        self._at += 1
        return _Node(items, start, self._at)

    def _object(self, depth: int) -> _Node:
        node = _Node({}, self._at, self._at, is_object=True)
        self._at += 1
        node.inner_end = self._at
        while self._peek() != "}":
            if self._peek() != '"':
                self.fail("a name in double quotes is expected", self._at)
            node.first_key = self._at if node.first_key < 0 else node.first_key
            name = str(self._scalar().value)
            if self._peek() != ":":
                self.fail("':' is expected", self._at)
            self._at += 1
            child = self._value(depth + 1)
            node.members[name], node.value[name] = child, child.value
            node.inner_end = self._at
            more = self._comma("}")
            node.has_trailing_comma = more
            if not more:
                break
            node.inner_end = self._at
        if not node.members:
            self._blank()
            node.inner_end = self._at
        self._at += 1
        node.end = self._at
        return node

    def _comma(self, closing: str) -> bool:
        """Whether a comma was read; else the closing bracket is next."""
        character = self._peek()
        if character == closing:
            return False
        if character != ",":
            self.fail(f"',' or '{closing}' is expected" if character else "it ends too early", self._at)
        comma = self._at
        self._at += 1
        if not self._relaxed and self._peek() == closing:
            self.fail("a comma before the end is not allowed here", comma)
        return True
