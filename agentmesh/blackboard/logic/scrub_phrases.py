"""Secrets in commands, statements, query strings and prose: `curl -u a:b`, `IDENTIFIED BY 'x'`, `?sig=x`, "the password is x".

Owns those phrases. Each names the word that must occur in the text before its pattern is tried.
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentmesh.blackboard.logic.redaction import Finding
from agentmesh.blackboard.logic.secret_values import (
    is_code,
    is_path,
    looks_like_password,
    looks_random,
    stands_for_a_secret,
)

PHRASE_RANK: Final = 42
_V: Final = r"(?:\"([^\"\n]{4,256})\"|'([^'\n]{4,256})'|([^\s\"'`<>]{4,512}))"


class Phrase(NamedTuple):
    """`words`: one of them (lower case) occurs. `strict`: only a random value counts. Groups: where the secret may be."""

    kind: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    strict: bool = False


def _phrase(kind: str, words: str, pattern: str, *, strict: bool = False) -> Phrase:
    return Phrase(kind, tuple(words.split()), re.compile(pattern, re.IGNORECASE | re.ASCII), strict)


_PHRASES: Final = (
    _phrase("PASSWORD", "curl http wget", r"\b(?:curl|http|https|wget)\b[^\n]{0,300}?[ \t](?:-u|--user|-a|--auth|--proxy-user|-U)[ =]{1,2}[\"']?[^\s:\"']{1,64}:([^\s\"']{4,256})"),
    _phrase("PASSWORD", "mysql mariadb mysqldump", r"\b(?:mysql|mariadb|mysqldump|mysqladmin)\b[^\n]{0,200}?[ \t]-p[\"']?([^\s\"'-][^\s\"']{3,128})"),
    _phrase("PASSWORD", "sshpass", r"\bsshpass[ \t]{1,4}-p[ \t]{0,4}" + _V),
    _phrase("PASSWORD", "redis-cli", r"\bredis-cli\b[^\n]{0,200}?[ \t](?:-a|--pass)[ \t]{1,4}" + _V),
    _phrase("PASSWORD", "docker podman helm az oc mongosh mongo mongodump cqlsh ldapsearch", r"\b(?:docker|podman|helm|az|oc|mongosh|mongo|mongodump|cqlsh|ldapsearch)\b[^\n]{0,200}?[ \t]-[pw][ \t]{1,4}" + _V),
    _phrase("PASSWORD", "htpasswd", r"\bhtpasswd\b[ \t]{1,4}-[a-z]{0,4}b[a-z]{0,4}[ \t]{1,4}\S{1,128}[ \t]{1,4}\S{1,64}[ \t]{1,4}" + _V),
    _phrase("PASSWORD", "smbclient rpcclient", r"\b(?:smbclient|rpcclient)\b[^\n]{0,200}?-U[ \t]{0,4}[\"']?[^\s%\"']{1,64}%([^\s\"']{4,128})"),
    _phrase("PASSWORD", "openssl pass:", r"(?<![A-Za-z0-9_-])-?pass(?:in|out)?[ \t]{1,4}pass:([^\s\"']{4,128})"),
    _phrase("PASSWORD", "net", r"\bnet[ \t]{1,4}use\b[^\n]{0,200}?/user:[^\s]{1,64}[ \t]{1,4}" + _V),
    _phrase("PASSWORD", "identified password", r"\b(?:identified[ \t]{1,4}(?:with[ \t]{1,4}\w{1,40}[ \t]{1,4})?by|(?:with[ \t]{1,4}|encrypted[ \t]{1,4}|set[ \t]{1,4})password)[ \t=]{1,4}(?:password[ \t]{1,4})?'([^'\n]{4,256})'"),
    _phrase("PASSWORD", "login", r"\blogin[ \t\n]{1,8}\S{1,64}[ \t\n]{1,8}password[ \t]{1,8}" + _V),
    _phrase("PASSWORD", "echo", r"\becho[ \t]{1,4}(?:-n[ \t]{1,4})?[\"']?([^\s\"'|]{6,128})[\"']?[ \t]{0,4}\|[ \t]{0,4}(?:sudo -S|docker login|passwd|kinit|su\b)"),
    _phrase("PASSWORD", ":", r"(?<![\w.*:/-])[A-Za-z0-9.*_-]{1,64}:(?:[0-9]{4,5}|\*):[A-Za-z0-9*_-]{1,63}:[A-Za-z0-9_.-]{1,63}:([^\s:]{6,128})(?=\s|$)"),
    _phrase("PASSWORD", "asplaintext convertto-securestring", r"convertto-securestring[ \t]{1,4}(?:-string[ \t]{1,4})?" + _V),
    _phrase("SIGNATURE", "sig signature token credential", r"[?&](?:sig|signature|x-amz-signature|x-amz-security-token|x-goog-signature|x-amz-credential|token|apikey|key)=([A-Za-z0-9%_\-.~+/=]{16,4096}+)", strict=True),
    _phrase("SECRET", "password passphrase passcode passwd pw pwd", r"\b(?:password|passphrase|passcode|passwd|pw|pwd)(?:[ \t]{1,2}(?:for|of|to|on)[ \t]{1,2}[^\s]{1,40}(?:[ \t]{1,2}[A-Za-z0-9_.@-]{1,30}){0,3}?)?[ \t]{1,2}(?:is|was|=|->|set to|changed to)(?:[ \t]{1,2}now)?:?[ \t]{1,2}[\"'`]?([^\s\"'`<>]{6,128})"),
    _phrase("SECRET", "key token secret credential", r"\b(?:(?:api|access|secret|auth|private|account|master|signing|encryption|deploy|license|bearer|refresh|client|service)[ \t](?:key|token|secret)|token|secret|credentials?)(?:[ \t]{1,2}(?:for|of|to|on|from)[ \t]{1,2}[^\s]{1,40}(?:[ \t]{1,2}[A-Za-z0-9_.@-]{1,30}){0,3}?)?[ \t]{0,2}(?:[ \t]is|[ \t]was|[ \t]are|=|:|->)(?:[ \t]{1,2}now)?:?[ \t]{1,2}[\"'`]?([A-Za-z0-9_\-+/=.~]{12,512}+)", strict=True),
    _phrase("SECRET", "password passwd token secret key", r"<(?:[a-z]{1,12}:)?[a-z_.-]{0,30}(?:password|passwd|token|secret|apikey|api_key|api-key|accesskey|passphrase)>([^<\s]{6,512})</"),
)  # fmt: skip

_STOPS: Final = frozenset(
    "required incorrect invalid correct expired missing wrong empty stored hashed encrypted rejected accepted reset changed".split()
)


def find_phrases(text: str) -> Iterator[Finding]:
    """Secrets that commands, SQL, query strings and sentences give away."""
    lower = text.lower()
    for phrase in _PHRASES:
        if not any(word in lower for word in phrase.words):
            continue
        for match in phrase.pattern.finditer(text):
            group = match.lastindex or 0
            start, end = match.span(group)
            while end > start and text[end - 1] in ".,;:)]}\"'":
                end -= 1
            if _is_secret(text[start:end], phrase):
                kind = "PASSWORD" if phrase.kind == "SECRET" and not phrase.strict else phrase.kind
                yield Finding(kind, start, end, PHRASE_RANK)


def _is_secret(value: str, phrase: Phrase) -> bool:
    if not value or stands_for_a_secret(value) or value.lower() in _STOPS or value[0] in "$<{[%":
        return False
    if looks_random(value):
        return not is_path(value)
    return not phrase.strict and not is_code(value) and (looks_like_password(value) or _is_quoted_word(value))


def _is_quoted_word(value: str) -> bool:
    return (
        False
        if len(value) < 4
        else any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and not is_path(value)
    )
