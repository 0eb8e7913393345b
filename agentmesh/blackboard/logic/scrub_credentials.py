"""Credentials that are recognised by their shape: key blocks, JWTs, URLs with a password, HTTP headers, password hashes.

Owns structure, not providers (scrub_providers.py) and not names with values (scrub_assignments.py).
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Final

from agentmesh.blackboard.logic.redaction import Finding
from agentmesh.blackboard.logic.secret_values import is_code, looks_random, stands_for_a_secret

BLOCK_RANK: Final = 5
JWT_RANK: Final = 15
URL_RANK: Final = 30
HEADER_RANK: Final = 32

# RFC 7468, RFC 4880 section 6.2, RFC 4716 (four dashes). Keys only: certificates and public keys are no secrets.
_BEGIN: Final = re.compile(r"-{4,5} ?BEGIN ([A-Z0-9 ]{0,40}?)PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_END: Final = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)? ?-{4,5}")
# A body really follows: base64 after line breaks, headers (`Proc-Type:`) or the marks that quoting puts before a line.
_BODY: Final = re.compile(r"(?:[\s>|+\"',]|\\[nr]|[A-Za-z-]{4,16}: [^\n\\]{1,80})*+[A-Za-z0-9+/=]{16}")
_BODY_REST: Final = re.compile(r"(?:[A-Za-z0-9+/=\s>|\"',:-]|\\[nr])*+")
_PUTTY: Final = re.compile(r"PuTTY-User-Key-File-[23]: ")
_PUTTY_KEY: Final = re.compile(
    r"Private-Lines: ?\d{1,3}\s++(?:[A-Za-z0-9+/=]{1,64}+\s*+)+(?:Private-MAC: ?[0-9a-f]{40,64})?"
)
_JWK_SECRET: Final = re.compile(r"\"(?:d|p|q|dp|dq|qi|k)\"\s{0,4}:\s{0,4}\"([A-Za-z0-9_-]{16,1400}+)\"")

# Each run of the alphabet is read once, since a match may only begin where a run begins (RFC 7519, RFC 7516).
_JWT: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?:(?<!\.)|(?<=\.\.))(eyJ[A-Za-z0-9_-]{8,4096}+)\.([A-Za-z0-9_-]{2,12000}+)((?:\.[A-Za-z0-9_-]{0,12000}+){1,3}+)?={0,2}"
)
_JWT_HEADER_FIELDS: Final = ("alg", "enc", "typ", "kid", "cty", "jku")

_URL_USER: Final = re.compile(
    r"://([^\s:@/\"'<>`?#\\|{}()]{0,100}):((?:[^\s/\"'<>`?\\]|\?(?=@)){1,256})@(?=[\w\[$\{<.-])"
)
_URL_TOKEN: Final = re.compile(r"://([A-Za-z0-9_-]{20,256}+)@")
_URL_PASSWORD_STOPS: Final = frozenset(
    "pass password passwd pwd secret pw token x-oauth-basic x-token-auth user username p pswd mypassword".split()
)

_AUTHORIZATION: Final = re.compile(
    r"\b(?:proxy-)?authorization\b[\"'\]]{0,2}\s{0,4}(?:[:=,]|=>)\s{0,4}[\"'`]{0,2}(?:(bearer|basic|token|digest|negotiate|apikey|api-key|key|ssws|bot|aws4-hmac-sha256|hawk|splunk)[ \t]{1,3})?[\"'`]?([^\s\"'`<>{}\\,;]{6,8192}+)",
    re.IGNORECASE | re.ASCII,
)
_BEARER: Final = re.compile(
    r"\b(?:bearer|ssws|basic)[ \t]{1,3}([A-Za-z0-9_\-.~+/=:]{16,8192}+)", re.IGNORECASE | re.ASCII
)
_COOKIE: Final = re.compile(
    r"\b(?:set-)?cookie[\"']?\s{0,2}[:=]\s{0,2}[\"']?([^\n\"']{8,4096}+)", re.IGNORECASE | re.ASCII
)
_COOKIE_PAIR: Final = re.compile(r"([\w.-]{2,64}+)=([^;\s]{12,4096}+)", re.ASCII)

_HASH: Final = re.compile(
    r"\$(?:2[abxy]?\$[0-9]{2}\$[./A-Za-z0-9]{53}|argon2(?:id|i|d)\$v=\d+\$[a-z0-9=,]{5,40}\$[A-Za-z0-9+/=]{8,64}\$[A-Za-z0-9+/=]{16,128}"
    r"|[156y]\$[./A-Za-z0-9$=]{4,40}\$[./A-Za-z0-9]{22,86}|apr1\$[./A-Za-z0-9]{1,8}\$[./A-Za-z0-9]{22}|scrypt\$[A-Za-z0-9+/=$,]{30,200})"
    r"|pbkdf2_sha(?:1|256|512)\$\d{3,8}\$[A-Za-z0-9]{4,64}\$[A-Za-z0-9+/=]{27,128}|\{S?SHA(?:256|512)?\}[A-Za-z0-9+/=]{27,128}"
)


def find_credentials(text: str) -> Iterator[Finding]:
    """Key blocks, JWTs, URLs with credentials, authorisation headers and cookies, password hashes."""
    if "PRIVATE KEY" in text or "PuTTY-User-Key-File-" in text or '"kty"' in text:
        yield from _key_blocks(text)
    if "eyJ" in text:
        yield from _jwts(text)
    if "://" in text:
        yield from _urls(text)
    yield from _headers(text)
    if "$" in text or "SHA" in text:
        yield from (Finding("PASSWORD_HASH", *match.span(), JWT_RANK) for match in _HASH.finditer(text))


def _key_blocks(text: str) -> Iterator[Finding]:
    ends = [match.end() for match in _END.finditer(text)]
    ends.reverse()
    covered = 0
    for begin in _BEGIN.finditer(text):
        if begin.start() < covered:
            continue
        body = _BODY.match(text, begin.end())
        if body is None:
            continue
        while ends and ends[-1] < begin.end():
            ends.pop()
        rest = _BODY_REST.match(text, begin.end())
        covered = ends[-1] if ends else (rest.end() if rest else body.end())
        kind = begin[1].strip().replace(" ", "_")
        yield Finding(f"{kind}_PRIVATE_KEY" if kind else "PRIVATE_KEY", begin.start(), covered, BLOCK_RANK)
    if _PUTTY.search(text):
        yield from (Finding("PUTTY_PRIVATE_KEY", *match.span(), BLOCK_RANK) for match in _PUTTY_KEY.finditer(text))
    if '"kty"' in text:
        yield from (Finding("JWK_PRIVATE_KEY", *match.span(1), BLOCK_RANK) for match in _JWK_SECRET.finditer(text))


def _jwts(text: str) -> Iterator[Finding]:
    for match in _JWT.finditer(text):
        if _is_jwt_header(match[1]):
            yield Finding("JWT", match.start(1), match.end(), JWT_RANK)


def _is_jwt_header(segment: str) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and any(field in header for field in _JWT_HEADER_FIELDS)


def _urls(text: str) -> Iterator[Finding]:
    for match in _URL_USER.finditer(text):
        password = match[2]
        if not _is_stand_in(password):
            yield Finding("PASSWORD", *match.span(2), URL_RANK)
    for match in _URL_TOKEN.finditer(text):
        if looks_random(match[1]):
            yield Finding("URL_TOKEN", *match.span(1), URL_RANK)


def _is_stand_in(password: str) -> bool:
    """Documentation's `user:pass@`, a variable, or the port of a URL whose path holds an `@`."""
    if password.lower() in _URL_PASSWORD_STOPS or password[0] in "$<{[%*":
        return True
    return (password.isdigit() and len(password) < 6) or stands_for_a_secret(password)


def _headers(text: str) -> Iterator[Finding]:
    lower = text.lower()
    if "authorization" in lower:
        for match in _AUTHORIZATION.finditer(text):
            value = match[2]
            if (match[1] or looks_random(value)) and _is_header_secret(value):
                yield Finding("AUTHORIZATION", *match.span(2), HEADER_RANK)
    if "bearer" in lower or "ssws" in lower or "basic" in lower:
        for match in _BEARER.finditer(text):
            if looks_random(match[1].rstrip(".=:")) and _is_header_secret(match[1]):
                yield Finding("AUTHORIZATION", *match.span(1), HEADER_RANK)
    if "cookie" in lower:
        for match in _COOKIE.finditer(text):
            for pair in _COOKIE_PAIR.finditer(match[1]):
                if looks_random(pair[2].rstrip("=")):
                    yield Finding("COOKIE", match.start(1) + pair.start(2), match.start(1) + pair.end(2), HEADER_RANK)


def _is_header_secret(value: str) -> bool:
    if stands_for_a_secret(value) or value[0] in "$<{[%*(" or is_code(value):
        return False
    return any(c.isdigit() for c in value) or (value != value.lower() and len(value) >= 12)
