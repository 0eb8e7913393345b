"""Personal data: e-mail addresses, phone numbers, payment cards, SSNs, IBANs, public IP addresses, MAC addresses.

Owns their shapes and checks, and what only looks like them in developers' texts: `git@`, `pkg@1.2`, versions, OIDs, ids.
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from agentmesh.blackboard.logic.redaction import Finding

PEOPLE_RANK: Final = 60

# The local part is read backwards from the @, so that a text without one costs nothing.
_AT: Final = re.compile(
    r"(?<=[\w+-])@((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,5}([a-z]{2,24}))(?![\w(]|-\w|\.[a-z0-9])", re.IGNORECASE
)
_LOCAL_SIGNS: Final = frozenset("._%+-'")
_MAX_LOCAL_CHARS: Final = 64  # RFC 5321, 4.5.3.1.1
_NOBODY: Final = frozenset(
    "git hg svn noreply no-reply no_reply donotreply do-not-reply postmaster mailer-daemon npm users.noreply notifications notify nobody root ec2-user www-data".split()
)
# What follows the last dot of `logo@2x.png`, `getty@tty1.service`, `a@b.T`: no domain ends so.
_NOT_TLDS: Final = frozenset(
    "png jpg jpeg gif svg webp ico css js ts tsx jsx mjs json yaml yml toml lock txt log html xml tgz gz zip tar whl service socket target mount timer "
    "slice scope path device swap local localhost internal lan dot shape sum mean reshape transpose dtype grad values conj noreply ex exs rb java".split()
)

_PHONE_PLUS: Final = re.compile(
    r"(?<![\w+/.=-])\+(?=[1-9])(?:[0-9](?:[ .\-/]|[ ]?\([0-9]{1,4}\)[ .-]?)?){7,16}(?![\w+])(?!\.[0-9])"
)
_PHONE_NANP: Final = re.compile(
    r"(?<![\w+/.=#-])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?[2-9][0-9]{2}[ .-][0-9]{4}|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4})(?![\w-]|\.[0-9])"
)
_PHONE_TRUNK: Final = re.compile(
    r"(?<![\w+/.=#:-])(?<![0-9a-fA-F] )(?:\(0[0-9]{1,4}\)[ -]?|0[0-9]{2,4}[ /-])[0-9]{3,4}[ -]?[0-9]{3,5}(?![\w:-]|\.[0-9]| [0-9A-Fa-f]{2,4}\b)"
)
_PHONE_PAIRS: Final = re.compile(
    r"(?<![\w+/.=#:-])(?<![0-9a-fA-F] )0[1-9](?:([ .])[0-9]{2})(?:\1[0-9]{2}){3}(?![\w:-]|[ .][0-9A-Fa-f]{2}\b)"
)

_CARD: Final = re.compile(
    r"(?<![\w.#/-])[2-6](?:[0-9]{12,15}|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-]|\.[0-9])"
)
_SSN: Final = re.compile(r"(?<![\w.#/-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-]|\.[0-9])")
_IBAN: Final = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_IBAN_LENGTHS: Final = {  # the SWIFT registry, ISO 13616
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC",
    }.items()
    for code in codes.split()
}  # fmt: skip

_IPV4: Final = re.compile(
    r"(?<![\w.-])(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?![\w]|\.[0-9]|-[A-Za-z0-9])"
)
_IPV6: Final = re.compile(
    r"(?<![\w:.])[23][0-9a-f]{3}:(?:[0-9a-f]{0,4}:){1,7}[0-9a-f]{0,4}(?![\w.]|:\w)", re.IGNORECASE | re.ASCII
)
_MAC: Final = re.compile(
    r"(?<![\w:-])(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5}|[0-9a-f]{2}(?:-[0-9a-f]{2}){5}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4})(?![\w:-]|\.\w)",
    re.IGNORECASE | re.ASCII,
)
_RESOLVERS: Final = frozenset(
    "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220".split()
)
_VERSION_BEFORE: Final = re.compile(
    r"(?:version|ver|release|build|rev|section|v|chapter|rfc|§|[A-Za-z]/|[=<>~^!]=|\boid|oid[ :=\"']|-)[\s:=\"'(]{0,3}$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE: Final = re.compile(
    r"(?:://|\bips?|addr(?:ess)?|host|server|peer|from|ping|ssh|connect(?:ed|ing|ion)? to|client|dst|src|inet6?|@|\bto|\bon|listen(?:ing)?(?: on)?)[\s:=\"'(\[]{0,3}$",
    re.IGNORECASE,
)
_PORT_AFTER: Final = re.compile(r"(?::[0-9]{2,5}\b|/[0-9]{1,2}\b)")
_SMALL_OCTET: Final = 20  # a quad of four small numbers is a version or a section unless something says address
_DOCUMENTATION_MAC: Final = "00005e0053"  # RFC 9542, 2.1.2
_DOCUMENTATION_V6: Final = tuple(ipaddress.IPv6Network(n) for n in ("2001:db8::/32", "3fff::/20"))


def find_people(text: str) -> Iterator[Finding]:
    """Personal data of every kind."""
    if "@" in text:
        yield from _emails(text)
    if not any(digit in text for digit in "0123456789"):
        if "::" in text or text.count(":") > 4 or text.count("-") > 4:
            yield from _hardware_addresses(text)
        return
    yield from _phones(text)
    yield from _numbers(text)
    yield from _ip_addresses(text)
    yield from _hardware_addresses(text)


def _emails(text: str) -> Iterator[Finding]:
    floor = 0
    for match in _AT.finditer(text):
        at = match.start()
        start = at
        while (
            start > floor
            and at - start < _MAX_LOCAL_CHARS
            and (text[start - 1].isalnum() or text[start - 1] in _LOCAL_SIGNS)
        ):
            start -= 1
        while start < at and not text[start].isalnum():
            start += 1
        floor = match.end()
        local = text[start:at].lower()
        if not local or text[max(0, start - 3) : start] == "://" or match[2].lower() in _NOT_TLDS:
            continue
        if local in _NOBODY or local.endswith(("noreply", "no-reply")) or match[1].lower().startswith("users.noreply."):
            continue
        yield Finding("EMAIL", start, match.end(), PEOPLE_RANK)


def _phones(text: str) -> Iterator[Finding]:
    for pattern in (_PHONE_PLUS, _PHONE_NANP, _PHONE_TRUNK, _PHONE_PAIRS):
        for match in pattern.finditer(text):
            digits = sum(c.isdigit() for c in match[0])
            end = match.end()
            while not text[end - 1].isdigit():
                end -= 1
            if 8 <= digits <= 15 and not _is_arithmetic(text, match.start(), match[0]):
                yield Finding("PHONE", match.start(), end, PEOPLE_RANK)


def _is_arithmetic(text: str, start: int, found: str) -> bool:
    """`+10000000` in a diff or a sum, `+1.5.2.3.4`: digits alone after a plus count only where a number is given."""
    if not found.startswith("+"):
        return False
    if any(c in " -()/" for c in found[1:].strip()):
        return text[max(0, start - 2) : start].strip().isdigit()
    before = text[max(0, start - 2) : start]
    return "." in found or before[-1:] == "\n" or (start == 0 and len(found) < 11) or before.strip()[-1:].isdigit()


def _numbers(text: str) -> Iterator[Finding]:
    for match in _CARD.finditer(text):
        digits = "".join(c for c in match[0] if c.isdigit())
        if _is_card(digits):
            yield Finding("CARD", *match.span(), PEOPLE_RANK)
    if "-" in text:
        yield from (Finding("SSN", *match.span(), PEOPLE_RANK) for match in _SSN.finditer(text))
    for match in _IBAN.finditer(text):
        compact = match[0].replace(" ", "")
        length = _IBAN_LENGTHS.get(compact[:2])
        if length is not None and len(compact) >= length and _is_iban(compact[:length]):
            yield Finding("IBAN", match.start(), _end_of(text, match.start(), length), PEOPLE_RANK)


def _end_of(text: str, start: int, characters: int) -> int:
    """Where the given number of characters, not counting blanks, ends."""
    while characters:
        characters -= text[start] != " "
        start += 1
    return start


def _is_card(digits: str) -> bool:
    two, four = int(digits[:2]), int(digits[:4])
    lengths = (
        (13, 16) if digits[0] == "4"
        else (16,) if 51 <= two <= 55 or 2221 <= four <= 2720 or four == 6011 or two == 65 or 3528 <= four <= 3589 or two == 62 or 644 <= int(digits[:3]) <= 649
        else (15,) if two in (34, 37)
        else (14,) if two in (36, 38) or 300 <= int(digits[:3]) <= 305
        else ()
    )  # fmt: skip
    return len(digits) in lengths and len(frozenset(digits)) > 2 and _luhn(digits)


def _luhn(digits: str) -> bool:
    total = 0
    for index, char in enumerate(reversed(digits)):
        number = int(char) * (2 if index % 2 else 1)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def _is_iban(compact: str) -> bool:
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _ip_addresses(text: str) -> Iterator[Finding]:
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            if _is_public_v4(text, match):
                yield Finding("IP_ADDRESS", *match.span(), PEOPLE_RANK)
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            written = match[0] if match[0].endswith("::") else match[0].rstrip(":")
            try:
                address = ipaddress.IPv6Address(written)
            except ValueError:
                continue
            if written.endswith("::") and text[match.end() : match.end() + 1] == "/":  # a network's name, not a host's
                continue
            if address.is_global and not any(address in network for network in _DOCUMENTATION_V6):
                yield Finding("IP_ADDRESS", match.start(), match.start() + len(written), PEOPLE_RANK)


def _is_public_v4(text: str, match: re.Match[str]) -> bool:
    address = ipaddress.IPv4Address(match[0])
    if not address.is_global or address.is_multicast or match[0] in _RESOLVERS:
        return False
    before = text[max(0, match.start() - 24) : match.start()]
    said = _ADDRESS_BEFORE.search(before) is not None or _PORT_AFTER.match(text, match.end()) is not None
    if _VERSION_BEFORE.search(before) is not None and not before.endswith("://"):
        return False
    octets = [int(part) for part in match[0].split(".")]
    if (octets[0] == 2 and octets[1] == 5) or octets[:3] == [1, 3, 6]:  # X.500 and IANA object identifiers
        return said
    return said or max(octets) >= _SMALL_OCTET


def _hardware_addresses(text: str) -> Iterator[Finding]:
    for match in _MAC.finditer(text):
        digits = "".join(c for c in match[0].lower() if c.isalnum())
        dashed = "-" in match[0] or "." in match[0]
        if len(frozenset(digits)) <= 2 or digits.startswith(_DOCUMENTATION_MAC) or (dashed and digits.isdigit()):
            continue
        yield Finding("MAC_ADDRESS", *match.span(), PEOPLE_RANK)
