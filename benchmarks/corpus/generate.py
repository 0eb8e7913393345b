"""Samples of every kind: a text, the secret in it, and what it is. Seeded; importable by tests and by the benchmark."""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.corpus.alphabet import fill
from benchmarks.corpus.blocks import BLOCKS
from benchmarks.corpus.formats import NAMED_ONLY, WITH_PREFIX
from benchmarks.corpus.people import PEOPLE
from benchmarks.corpus.surroundings import AROUND_TOKEN, NAMED, PASSWORD_NAMES, PASSWORD_USES, put, with_prose

PASSWORD_WORDS = "Summer Winter dragon monkey Falcon orchid Tiger silver shadow Berlin coffee Purple rocket Zebra anchor Maple".split()


class Sample(NamedTuple):
    """`secret` stands in `text` once, and nothing of it may be left."""

    kind: str
    text: str
    secret: str


def password(rng: random.Random) -> str:
    """What people choose and what password managers make."""
    word, other = rng.choice(PASSWORD_WORDS), rng.choice(PASSWORD_WORDS)
    sign = rng.choice("!$#*%^&?")
    made = "".join(rng.choice(string.ascii_letters + string.digits + "!#%*-_=+.") for _ in range(rng.randint(12, 24)))
    leet = word.lower().replace("e", "3").replace("o", "0").replace("a", "4")
    return rng.choice(
        (f"{word}{rng.randint(10, 2026)}{sign}", f"{word}{other}{rng.randint(1, 99)}", f"{leet}{rng.randint(10, 99)}{sign}", f"{word}-{other}-{rng.randint(10, 99)}", _safe(made))
    )  # fmt: skip


def _safe(made: str) -> str:
    return "K" + made[1:-1] + "7"


def credentials(rng: random.Random, each: int) -> Iterator[Sample]:
    """`each` samples of every credential kind."""
    for kind, template in WITH_PREFIX:
        for _ in range(each):
            secret = fill(template, rng)
            yield Sample(f"token:{kind}", with_prose(put(rng.choice(AROUND_TOKEN), secret), rng), secret)
    for kind, name, template in NAMED_ONLY:
        for _ in range(each):
            secret = fill(template, rng)
            yield Sample(f"named:{kind}", with_prose(put(rng.choice(NAMED), secret, name), rng), secret)
    for surrounding in NAMED:
        for _ in range(each):
            secret = password(rng)
            yield Sample(
                f"password in: {surrounding}",
                with_prose(put(surrounding, secret, rng.choice(PASSWORD_NAMES)), rng),
                secret,
            )
    for surrounding in PASSWORD_USES:
        for _ in range(each):
            secret = password(rng)
            yield Sample(f"password in: {surrounding}", with_prose(put(surrounding, secret), rng), secret)
    yield from _made(BLOCKS, rng, each)


def people(rng: random.Random, each: int) -> Iterator[Sample]:
    """`each` samples of every kind of personal data."""
    yield from _made(PEOPLE, rng, each)


def left_over(sample: Sample, masked: str) -> bool:
    """Whether 8 characters in a row of the secret (all of it, when shorter) can still be read, and not because others say them."""
    window = min(8, len(sample.secret))
    others = sample.text.replace(sample.secret, "\0")
    seen = re.sub(r"\{\{[A-Z0-9_]+\}\}", "\0", masked)
    pieces = (sample.secret[i : i + window] for i in range(len(sample.secret) - window + 1))
    return any(piece in seen and piece not in others for piece in pieces)


def _made(
    makers: dict[str, Callable[[random.Random], tuple[str, str]]], rng: random.Random, each: int
) -> Iterator[Sample]:
    for kind, make in makers.items():
        for _ in range(each):
            text, secret = make(rng)
            yield Sample(kind, with_prose(text, rng), secret)
