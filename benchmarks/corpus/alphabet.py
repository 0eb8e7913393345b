"""Random strings from templates such as `ghp_<an:36>`: `<set:length>` or `<set:low-high>`, or a word of the list below.

Sets: an letters and digits, hex, HEX, up (A-Z0-9), low (a-z0-9), let letters, dig, b64 (with +/), url (with -_), b32 (A-Z2-7).
Words: <uuid>, <word>, <jwt>.
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import base64
import json
import random
import re
import string

SETS = {
    "an": string.ascii_letters + string.digits,
    "hex": "0123456789abcdef",
    "HEX": "0123456789ABCDEF",
    "up": string.ascii_uppercase + string.digits,
    "low": string.ascii_lowercase + string.digits,
    "let": string.ascii_letters,
    "dig": string.digits,
    "b64": string.ascii_letters + string.digits + "+/",
    "url": string.ascii_letters + string.digits + "-_",
    "b32": string.ascii_uppercase + "234567",
}
WORDS = (
    "retry billing worker queue parser socket cache index shard replica cluster backup release canary gateway session loader planner router "
    "scheduler adapter fixture migration pipeline webhook invoice ledger tenant cursor batch stream frame buffer handshake token_bucket"
).split()
_FIELD = re.compile(r"<(\w+)(?::(\d+)(?:-(\d+))?)?>")


def fill(template: str, rng: random.Random) -> str:
    """A random string of the template."""

    def one(match: re.Match[str]) -> str:
        name, low, high = match[1], match[2], match[3]
        if name == "uuid":
            return fill("<hex:8>-<hex:4>-4<hex:3>-a<hex:3>-<hex:12>", rng)
        if name == "word":
            return rng.choice(WORDS)
        if name == "jwt":
            return jwt(rng)
        length = rng.randint(int(low), int(high or low))
        return "".join(rng.choice(SETS[name]) for _ in range(length))

    return _FIELD.sub(one, template)


def jwt(rng: random.Random) -> str:
    """A signed token of three parts; the signature is noise."""
    header = rng.choice(
        ({"alg": "HS256", "typ": "JWT"}, {"alg": "RS256", "kid": fill("<hex:16>", rng)}, {"typ": "JWT", "alg": "ES256"})
    )
    claims = {
        "sub": fill("<dig:10>", rng),
        "name": fill("<word>", rng),
        "iat": rng.randint(1_600_000_000, 1_800_000_000),
    }
    return f"{_segment(header)}.{_segment(claims)}.{fill('<url:43-86>', rng)}"


def _segment(value: dict[str, object]) -> str:
    text = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()
