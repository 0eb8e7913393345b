"""Personal data: addresses, numbers and identifiers as people write them."""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.corpus.alphabet import fill

Made = tuple[str, str]
FIRST = "anna bjorn carla dmitri elena farid greta hiro ines jonas karim lena marta nils olga pedro".split()
LAST = "schmidt okafor tanaka rossi novak larsen dubois moreno khan ivanova weber silva nguyen brown".split()
DOMAINS = "acme.io globex.com initech.co.uk umbrella.de hooli.dev piedpiper.net stark-industries.com mail.wonka.org uni-berlin.de".split()


def _around(rng: random.Random, value: str, *more: str) -> Made:
    return rng.choice(
        (
            "contact {}",
            "reported by {}",
            "({})",
            "{}: please look",
            "from {} to the team",
            "call or write {}, thanks",
            "user={} status=ok",
            '"contact": "{}"',
            *more,
        )
    ).format(value), value


def _email(rng: random.Random) -> Made:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    local = rng.choice(
        (
            f"{first}.{last}",
            f"{first[0]}{last}",
            f"{first}_{last}",
            f"{first}+ci",
            f"{last}{rng.randint(1, 99)}",
            f"{first}-{last}",
        )
    )
    return _around(rng, f"{local}@{rng.choice(DOMAINS)}", "Author: A <{}>", "mailto:{}", "Signed-off-by: A B <{}>")


def _phone(rng: random.Random) -> Made:
    area, exchange, line = rng.randint(201, 989), rng.randint(200, 999), rng.randint(1000, 9999)
    value = rng.choice((
        f"({area}) {exchange}-{line}", f"{area}-{exchange}-{line}", f"{area}.{exchange}.{line}", f"+1 {area} {exchange} {line}", f"+1-{area}-{exchange}-{line}", f"+1{area}{exchange}{line}", f"1-{area}-{exchange}-{line}",
        fill("+44 20 7<dig:3> <dig:4>", rng), fill("+44 7<dig:3> <dig:6>", rng), fill("+49 30 <dig:8>", rng), fill("+49 171 <dig:7>", rng), fill("+33 6 <dig:2> <dig:2> <dig:2> <dig:2>", rng), fill("+336<dig:8>", rng),
        fill("+81 90-<dig:4>-<dig:4>", rng), fill("+91 98<dig:3> <dig:5>", rng), fill("+48 <dig:3> <dig:3> <dig:3>", rng), fill("+55 (11) 9<dig:4>-<dig:4>", rng), fill("020 7<dig:3> <dig:4>", rng), fill("07<dig:3> <dig:6>", rng),
        fill("06 <dig:2> <dig:2> <dig:2> <dig:2>", rng),
    ))  # fmt: skip
    return rng.choice(
        (
            "call me at {}",
            "phone: {}",
            "tel. {} (office)",
            "on call today: {}",
            "sms to {} failed",
            "{} is the duty phone",
            '"phone": "{}"',
        )
    ).format(value), value


def _luhn(prefix: str, length: int, rng: random.Random) -> str:
    digits = prefix + fill(f"<dig:{length - len(prefix) - 1}>", rng)
    total = 0
    for index, char in enumerate(reversed(digits)):
        number = int(char) * (1 if index % 2 else 2)
        total += number - 9 if number > 9 else number
    return digits + str(-total % 10)


def _card(rng: random.Random) -> Made:
    prefix, length = rng.choice(
        (
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2223", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("65", 16),
            ("3530", 16),
            ("36", 14),
        )
    )
    digits = _luhn(prefix, length, rng)
    if length == 16 and rng.random() < 0.6:
        sign = rng.choice(" -")
        digits = sign.join(digits[i : i + 4] for i in range(0, 16, 4))
    elif length == 15 and rng.random() < 0.5:
        digits = f"{digits[:4]} {digits[4:10]} {digits[10:]}"
    return rng.choice(("card {} was declined", "PAN={}", '"number": "{}"', "paid with {}", "{} exp 12/29")).format(
        digits
    ), digits


def _ssn(rng: random.Random) -> Made:
    value = f"{rng.randint(1, 665):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"
    return rng.choice(("SSN {}", "ssn: {}", '"ssn": "{}"', "customer {} not found", "({})")).format(value), value


def _iban(rng: random.Random) -> Made:
    country, body = rng.choice(
        (
            ("DE", "<dig:18>"),
            ("FR", "<dig:23>"),
            ("GB", "NWBK<dig:14>"),
            ("NL", "ABNA<dig:10>"),
            ("ES", "<dig:20>"),
            ("IT", "X<dig:22>"),
            ("CH", "<dig:17>"),
            ("AT", "<dig:16>"),
            ("PL", "<dig:24>"),
            ("BE", "<dig:12>"),
        )
    )
    account = fill(body, rng)
    number = int("".join(str(int(c, 36)) for c in account + country + "00"))
    value = f"{country}{98 - number % 97:02}{account}"
    if rng.random() < 0.5:
        value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return rng.choice(("IBAN {}", "pay to {}", "iban: {},", '"iban": "{}"', "account {} was debited")).format(
        value
    ), value


def _public_v4(rng: random.Random) -> Made:
    value = f"{rng.choice((3, 13, 18, 34, 35, 44, 52, 54, 63, 76, 81, 88, 95, 104, 129, 142, 151, 167, 178, 185, 194, 209, 212))}.{rng.randint(20, 99)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"
    return _around(
        rng,
        value,
        "http://{}:8080/x",
        "ssh root@{}",
        "ping {}",
        "client {} timed out",
        "from {} port 51234",
        "{}:443 refused",
        "host={}",
    )


def _public_v6(rng: random.Random) -> Made:
    value = rng.choice(
        (
            fill("2a01:4f8:<hex:3>a:<hex:4>::1", rng),
            fill("2600:1f18:<hex:3>b:<hex:3>c:<hex:3>d:<hex:3>e:<hex:3>f:<hex:3>a", rng),
            fill("2001:41d0:<hex:3>a::<hex:3>b", rng),
            fill("2a00:1450:4001:8<hex:2>::200e", rng),
        )
    )
    return _around(rng, value, "http://[{}]:8080/", "connect to {} failed", "{}/64 is ours")


def _mac(rng: random.Random) -> Made:
    pairs = [fill("<hex:2>", rng) for _ in range(6)]
    pairs[0] = rng.choice(("3c", "a4", "f0", "d8", "9c"))
    joined = rng.choice(
        (
            ":".join(pairs),
            "-".join(pairs).upper(),
            ":".join(pairs).upper(),
            ".".join("".join(pairs)[i : i + 4] for i in (0, 4, 8)),
        )
    )
    return rng.choice(("link/ether {} brd", "MAC {}", "ether {}", "device {} joined", '"mac": "{}"')).format(
        joined
    ), joined


PEOPLE: dict[str, Callable[[random.Random], Made]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "ssn": _ssn,
    "iban": _iban,
    "ipv4": _public_v4,
    "ipv6": _public_v6,
    "mac": _mac,
}
