"""How a person's words become full-text queries that cannot fail, and how they are relaxed when they find little.

Owns quoting, the order of relaxation (all terms, any, prefixes, trigrams, the text itself) and the filters with their tag
tokens. Knows FTS5's query language, no connection.

A tag token is one word in the index that stands for one combination of topic, kind and author; each post carries one for
every combination that it satisfies. A filter is then one more term of the query, and costs no scan however rare or common.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from agentmesh.blackboard.logic.limits import (
    MAX_ALL_TERMS,
    MAX_QUERY_CHARS,
    MAX_QUERY_TERMS,
    MAX_TERM_CHARS,
    MAX_TRIGRAMS,
    MIN_PREFIX_CHARS,
)
from agentmesh.blackboard.logic.post import PostKind
from agentmesh.core.errors import InvalidInput

# Starts every tag token: a private-use character, which unicode61 takes for part of a word (category Co).
TAG_MARK = "\ue0a6"
# Kinds that stay open until something closes them: a reply, a DONE.
CLOSABLE = (PostKind.QUESTION, PostKind.CLAIM)
# unicode61 makes words of letters, numbers and private-use characters (sqlite.org/fts5.html, section 4.3.1).
_WORD_CATEGORIES = ("L", "N", "Co")
# Words that are in every text; they count only in a query that has no others.
_EVERYWHERE = frozenset({
    "a", "about", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "did", "do",
    "does", "for", "from", "get", "had", "has", "have", "how", "i", "if", "in", "is", "it", "its", "me", "my",
    "no", "not", "of", "on", "or", "our", "should", "so", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "to", "was", "we", "were", "what", "when", "where", "which", "who", "why",
    "will", "with", "would", "you", "your",
})  # fmt: skip
# A prefix of fewer letters would gather every word that begins so.
_PREFIX_END = re.compile(rf"\w{{{MIN_PREFIX_CHARS}}}\W*$")
_PIECES = re.compile(r'"([^"]+)"|(\S+)')


@dataclass(frozen=True, slots=True)
class PostRow:
    """One post of the store. `order` sorts by time, `arrival` counts up as posts become visible on this node."""

    order: int
    arrival: int
    id: bytes
    kind: str
    topic: str | None
    branch: str | None
    text: str
    author: str
    node: bytes
    created_ms: int
    expires_ms: int
    reply_to: bytes | None
    closed: bool


@dataclass(frozen=True, slots=True)
class Filters:
    """Which posts are wanted; names compare without regard to case. `thread` is the id of any post of the thread."""

    topic: str | None = None
    kind: str | None = None
    author: str | None = None
    since_ms: int | None = None
    unanswered: bool = False
    thread: bytes | None = None

    @property
    def impossible(self) -> bool:
        """Only questions can be unanswered."""
        return self.unanswered and self.kind not in (None, PostKind.QUESTION)

    def tag(self) -> str | None:
        """The one tag token that stands for topic, kind, author and unanswered; None without any of them."""
        kind = f"{PostKind.QUESTION}?" if self.unanswered else self.kind
        if self.topic is None and kind is None and self.author is None:
            return None
        return _tag(self.topic, kind, self.author)

    def matches(self, row: PostRow) -> bool:
        """Whether a post satisfies everything but `thread`."""
        return (
            (self.topic is None or (row.topic or "").casefold() == self.topic.casefold())
            and (self.kind is None or row.kind == self.kind)
            and (self.author is None or row.author.casefold() == self.author.casefold())
            and (self.since_ms is None or row.created_ms >= self.since_ms)
            and (not self.unanswered or (row.kind == PostKind.QUESTION and not row.closed))
        )

    def digest(self) -> bytes:
        """Names the filters (but not since when) in cursors and unread positions."""
        parts = (self.topic, self.kind, self.author, str(self.unanswered), self.thread.hex() if self.thread else None)
        text = "\x00".join("\x01" if p is None else p.casefold() for p in parts)
        return hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Stage(StrEnum):
    """The steps of relaxation, in order."""

    ALL = "all"
    ANY = "any"
    PREFIX = "prefix"
    TRIGRAM = "trigram"
    LITERAL = "literal"


@dataclass(frozen=True, slots=True)
class Step:
    """One full-text query, and the terms and tag that it is made of. `needles`, casefolded: one must be in the text (trigrams only suggest)."""

    stage: Stage
    match: str | None
    terms: tuple[str, ...] = ()
    tag: str | None = None
    needles: tuple[str, ...] = ()


def tags_of(topic: str | None, kind: str, author: str, *, closed: bool) -> str:
    """The tag tokens of a post, separated by spaces."""
    kinds = [kind]
    if kind in CLOSABLE and not closed:
        kinds.append(f"{kind}?")
    topics = [None] if topic is None else [None, topic]
    tags = [_tag(t, k, a) for t in topics for k in (None, *kinds) for a in (None, author)]
    return " ".join(tags[1:])  # the first is the empty combination


def _tag(topic: str | None, kind: str | None, author: str | None) -> str:
    text = "\x00".join("\x01" if p is None else p.casefold() for p in (topic, kind, author))
    digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    # Decimal digits: porter would stem letters.
    return f"{TAG_MARK}{int.from_bytes(digest, 'big')}"


def quoted(term: str) -> str:
    """An FTS5 string: nothing in it is syntax."""
    return '"' + term.replace('"', '""') + '"'


def terms_of(query: str) -> tuple[str, ...]:
    """The query's words and "quoted phrases", in order, without repeats and without what holds no word.

    Raises:
        InvalidInput: the query is longer than any search.
    """
    if len(query) > MAX_QUERY_CHARS:
        raise InvalidInput(f"The query is {len(query):,} characters long; at most {MAX_QUERY_CHARS:,} are allowed.")
    found: dict[str, str] = {}
    for piece in _PIECES.finditer(clean(query)):
        term = (piece[1] or piece[2]).strip()[:MAX_TERM_CHARS]
        if any(_is_word_character(c) for c in term):
            found.setdefault(term.casefold(), term)
            if len(found) == MAX_QUERY_TERMS:
                break
    telling = [term for folded, term in found.items() if folded not in _EVERYWHERE]
    return tuple(telling or found.values())


def clean(query: str) -> str:
    """The query without what no text holds: control characters and lone surrogates become spaces."""
    return "".join(" " if c < " " or "\ud800" <= c <= "\udfff" else c for c in query).strip()


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character).startswith(_WORD_CATEGORIES)


def plan(query: str, filters: Filters) -> Iterator[Step]:
    """The steps of a search, strictest first; the searcher stops when it has found enough.

    A query that holds no word (`->`, an emoji) is looked for in the newest texts as it stands.

    Raises:
        InvalidInput: the query is longer than any search.
    """
    terms = terms_of(query)
    tag = filters.tag()
    if not terms:
        needle = clean(query)[:MAX_TERM_CHARS].casefold()
        yield Step(Stage.LITERAL, quoted(tag) if tag else None, needles=(needle,))
        return
    every = " AND ".join(quoted(t) for t in _longest(terms))
    yield Step(Stage.ALL, _tagged(every, tag), terms, tag)
    if len(terms) > 1:
        yield Step(Stage.ANY, _tagged(" OR ".join(quoted(t) for t in terms), tag), terms, tag)
    stems = [t for t in terms if _PREFIX_END.search(t)]
    if stems:
        yield Step(Stage.PREFIX, _tagged(" OR ".join(f"{quoted(t)} *" for t in stems), tag))
    parts = [t for t in terms if len(t) >= MIN_PREFIX_CHARS]
    if parts:
        pieces = " OR ".join(f"({_trigrams(t)})" for t in parts)
        yield Step(Stage.TRIGRAM, pieces, needles=tuple(t.casefold() for t in parts))


def _longest(terms: tuple[str, ...]) -> list[str]:
    """The longest terms in their order: the time of an AND grows with every term, and short words are the common ones."""
    kept = sorted(terms, key=len, reverse=True)[:MAX_ALL_TERMS]
    return [term for term in terms if term in kept]


def _tagged(match: str, tag: str | None) -> str:
    return match if tag is None else f"({match}) AND {quoted(tag)}"


def _trigrams(term: str) -> str:
    found = list(dict.fromkeys(term[i : i + 3] for i in range(len(term) - 2)))
    step = max(1, -(-len(found) // MAX_TRIGRAMS))  # a few suggest as well as all: the text itself decides
    found = found[::step]
    return " AND ".join(quoted(t) for t in found)
