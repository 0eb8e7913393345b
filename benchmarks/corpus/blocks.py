"""Credentials with a shape of their own: key blocks in every form they are pasted in, headers, cookies, files of keys."""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import base64
import random
from collections.abc import Callable

from benchmarks.corpus.alphabet import fill

Made = tuple[str, str]


def _dashes(word: str, label: str) -> str:
    return "-" * 5 + word + " " + label + "-" * 5


def _body(rng: random.Random, lines: int, width: int = 64) -> list[str]:
    return [fill(f"<b64:{width}>", rng) for _ in range(lines)] + [fill("<b64:22>==", rng)]


def _pem(label: str, headers: tuple[str, ...] = ()) -> Callable[[random.Random], Made]:
    def make(rng: random.Random) -> Made:
        body = "\n".join(_body(rng, rng.randint(3, 24)))
        head = "".join(h + "\n" for h in headers) + ("\n" if headers else "")
        mark = rng.choice(("", "> ", "    ", "+", "| "))
        block = f"{_dashes('BEGIN', label)}\n{head}{body}\n{_dashes('END', label)}"
        return "\n".join(mark + line for line in block.split("\n")), body.split("\n")[1]

    return make


def _escaped(rng: random.Random) -> Made:
    lines = _body(rng, 6)
    block = "\\n".join((_dashes("BEGIN", "PRIVATE KEY"), *lines, _dashes("END", "PRIVATE KEY"), ""))
    return f'"private_key": "{block}", "client_email": null', lines[2]


def _cut(rng: random.Random) -> Made:
    lines = _body(rng, 4)
    return "\n".join((_dashes("BEGIN", "RSA PRIVATE KEY"), *lines)), lines[3]


def _putty(rng: random.Random) -> Made:
    lines = _body(rng, 4)
    return (
        "PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nComment: k\nPublic-Lines: 1\nAAAAB3Nz\nPrivate-Lines: 5\n"
        + "\n".join(lines)
        + "\nPrivate-MAC: "
        + fill("<hex:64>", rng),
        lines[1],
    )


def _jwk(rng: random.Random) -> Made:
    secret = fill("<url:43>", rng)
    return f'{{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2", "d": "{secret}"}}', secret


def _basic(rng: random.Random) -> Made:
    secret = base64.b64encode(fill("<low:8>:<an:14>", rng).encode()).decode()
    return rng.choice(
        (f"Authorization: Basic {secret}", f'-H "Authorization: Basic {secret}"', f"'Authorization': 'Basic {secret}'")
    ), secret


def _bearer(rng: random.Random) -> Made:
    secret = fill("<url:24-64>", rng)
    return rng.choice(
        (
            f"Authorization: Bearer {secret}",
            f'headers={{"Authorization": "Bearer {secret}"}}',
            f"authorization: token {secret}",
            f"Proxy-Authorization: Bearer {secret}",
        )
    ), secret


def _cookie(rng: random.Random) -> Made:
    secret = fill("<an:32-64>", rng)
    return rng.choice(
        (f"Cookie: theme=dark; sessionid={secret}; lang=en", f"Set-Cookie: connect.sid=s%3A{secret}; Path=/; HttpOnly")
    ), secret


def _netrc_npmrc(rng: random.Random) -> Made:
    secret = fill("<an:36>", rng)
    return rng.choice(
        (f"//registry.acme.dev/:_authToken={secret}", f"//registry.acme.dev/:_auth={secret}", f"_password={secret}")
    ), secret


def _aws_csv(rng: random.Random) -> Made:
    secret = fill("<b64:40>", rng)
    return rng.choice(
        (
            f"Access key ID,Secret access key\n{fill('AKIA<b32:16>', rng)},{secret}",
            f"{fill('AKIA<b32:16>', rng)} / {secret}",
        )
    ), secret


def _azure_connection(rng: random.Random) -> Made:
    secret = fill("<b64:86>==", rng)
    return (
        f"DefaultEndpointsProtocol=https;AccountName=shop;AccountKey={secret};EndpointSuffix=core.windows.net",
        secret,
    )


def _service_bus(rng: random.Random) -> Made:
    secret = fill("<b64:43>=", rng)
    return f"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey={secret}", secret


def _sas(rng: random.Random) -> Made:
    secret = fill("<an:40>%2B<an:3>%3D", rng)
    return f"https://shop.blob.core.windows.net/c/f?sv=2024-11-04&se=2026-12-01&sp=r&sig={secret}", secret


def _presigned(rng: random.Random) -> Made:
    secret = fill("<hex:64>", rng)
    return f"https://b.s3.amazonaws.com/k?X-Amz-Expires=900&X-Amz-Signature={secret}", secret


def _seed_phrase(rng: random.Random) -> Made:
    words = [
        rng.choice(
            "abandon ability absent anchor banana candle dragon eagle fabric galaxy harbor icon jungle kitten lemon mango".split()
        )
        for _ in range(12)
    ]
    secret = " ".join(words)
    return rng.choice((f'MNEMONIC="{secret}"', f"mnemonic: {secret}", f"seed_phrase = '{secret}'")), secret


def _sentry_dsn(rng: random.Random) -> Made:
    secret = fill("<hex:32>", rng)
    return f"SENTRY_DSN=https://{secret}@o12345.ingest.sentry.io/678", secret


def _prose(rng: random.Random) -> Made:
    secret = fill("<an:24-40>", rng)
    return rng.choice(
        (
            f"the api key is {secret}",
            f"access token for staging: {secret}",
            f"secret key was {secret}, now revoked",
            f"our token is {secret}.",
        )
    ), secret


BLOCKS: dict[str, Callable[[random.Random], Made]] = {
    "block:pem-pkcs8": _pem("PRIVATE KEY"),
    "block:pem-rsa": _pem("RSA PRIVATE KEY"),
    "block:pem-ec": _pem("EC PRIVATE KEY"),
    "block:pem-dsa": _pem("DSA PRIVATE KEY"),
    "block:pem-openssh": _pem("OPENSSH PRIVATE KEY"),
    "block:pem-encrypted": _pem("ENCRYPTED PRIVATE KEY"),
    "block:pem-encrypted-legacy": _pem(
        "RSA PRIVATE KEY", ("Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0123456789ABCDEF")
    ),
    "block:pgp": _pem("PGP PRIVATE KEY BLOCK", ("Version: GnuPG v2",)),
    "block:pem-in-json": _escaped,
    "block:pem-cut-off": _cut,
    "block:putty": _putty,
    "block:jwk": _jwk,
    "header:basic": _basic,
    "header:bearer": _bearer,
    "header:cookie": _cookie,
    "file:npmrc": _netrc_npmrc,
    "file:aws-csv": _aws_csv,
    "connection:azure-storage": _azure_connection,
    "connection:service-bus": _service_bus,
    "url:azure-sas": _sas,
    "url:aws-presigned": _presigned,
    "url:sentry-dsn": _sentry_dsn,
    "phrase:seed": _seed_phrase,
    "prose:key": _prose,
}
