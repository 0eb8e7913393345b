"""Real lines of developers' texts found on this machine, and issue-like and hostile-looking lines made from a seed.

Owns where the lines come from and which ones are left out because they truly hold personal data or a key. That test is kept
plain and apart from the scrubber: an `@` between word characters, four dotted numbers, the words PRIVATE KEY, a `+` with ten
digits, a password in quotes, two joined parts of a JSON Web Token, or a number of a payment card's form in quotes (type stubs list test
cards). Lines are sampled evenly over the files.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus.alphabet import WORDS, fill

TRULY_SENSITIVE = re.compile(
    r"[\w.+-]@\w|\d+\.\d+\.\d+\.\d+|PRIVATE KEY|\+\d[\d ()-]{9,}|(?i:passw\w*|secret\w*|pwd)[\"']?\s*[=:]+\s*[bru]?[\"'][^\"'\s]{3,}[\"']|://[^/\s:]*:[^/\s]*@"
    r"|eyJ[\w-]{10,}\.eyJ|[\"'](?:4\d{15}|5\d{15}|6\d{15}|3\d{13,14})[\"']"
)

LOOK_ALIKES = (
    "fixed in {sha7}", "revert {sha40}", "see commit {sha40} and {sha12}", "id {uuid} is stale", '"integrity": "sha512-{b64}==",', '"resolved": "https://reg.acme.dev/left-pad/-/left-pad-1.3.0.tgz",',
    "image: acme/shop@sha256:{sha64}", "sha256 = {sha64}", "checksum: {sha64}  dist.tar.gz", "--hash=sha256:{sha64} \\", "h1:{b64:.43}=", "max_token=4096", "max_tokens: 8192", "task-runner disk-usage apk-build risk-based", "sk-learn 1.5.2",
    "10.0.0.5 answers, 192.168.1.20 does not", "127.0.0.1:9337", "git@github.com:acme/shop.git", "@app.route('/v1/items')", "PR 4155552671", "run 1234567890123456", "v1.2.3.4", "version 10.4.21.8", "Chrome/120.0.0.0 Safari/537.36",
    "password=os.environ['DB_PASSWORD']", "password = get_password(user)", "token: str", "token: str | None = None", "api_key=YOUR_KEY_HERE", "API_KEY=<your-key>", "api_key: ${API_KEY}", "secret_key = config.secret_key", "password: ********",
    "def verify_token(token: str, secret: bytes) -> bool:", "if token == self.expected_token:", "tokens = tokenizer.encode(text)", "token_type='bearer'", "key = cache_key(user_id, page)", "primary_key=True, foreign_key='user.id'", "sort_key=lambda x: x[1]",
    "public_key = load('id_ed25519.pub')", "Authorization: Bearer $TOKEN", "Authorization: Bearer <token>", 'headers["Authorization"] = f"Bearer {token}"', "postgres://user:password@localhost/db", "postgres://localhost:5432/app", "https://{host}:{port}/x@y",
    "lodash@4.17.21 and @types/node@20.1.0", "actions/checkout@v4.1.2", "logo@2x.png", "user@host", "getty@tty1.service", "noreply@github.com", "12:34:56 started", "2026-11-21T10:11:12.345Z", "0x7ffee4c0 at 00007f8a", "line 123-45-67", "ratio 3.14159265358979",
    "token count 128000 of 200000", "password must have 8 characters", "the password is required", "the token is expired", "secrets are read from the vault", "key: value", "-----BEGIN CERTIFICATE-----", 'if "-----BEGIN PRIVATE KEY-----" in text:', "ssh-rsa AAAAB3Nza",
    "{uuid}", "{sha32}", "etag: \"{sha32}\"", "trace_id={sha32} span_id={sha16}", "X-Request-Id: {uuid}", "nonce={sha16}", "data:image/png;base64,{b64}", "uid=1000(app) gid=1000(app)", "next_page_token=CAUQAA", "cursor=eyJpZCI6MTAwfQ", "password_hash_algorithm: argon2id",
)  # fmt: skip
ISSUES = (
    "{a} fails when the {b} is empty, see src/{a}/{b}.py:{n}", "STATUS: [acme/{a} branch:{b}-{n}] tests pass, {n} of {n} green", "QUESTION: does the {a} keep its {b} after a restart? run {n}", "TIP: run pytest -k {a} with {b}=1 to see it", "DONE: moved {a} into {b}, closes #{n}",
    "CLAIM: src/{a}/** and tests/{b}/ until tonight", "{a}: fix off-by-one in {b} ({sha7})", "Bump {a} from 1.{n}.0 to 1.{n}.1", "the {a} timed out after {n}.5s; retried {n} times", "Merge pull request #{n} from acme/{a}-{b}", "W1121 10:00:{n:02} {a}.cc:{n}] {b} took {n} ms",
)  # fmt: skip


def made_lines(rng: random.Random, count: int) -> Iterator[str]:
    """Lines that look like secrets and are none, and lines of issues."""
    for index in range(count):
        template = (LOOK_ALIKES if index % 2 else ISSUES)[(index // 2) % len(LOOK_ALIKES if index % 2 else ISSUES)]
        yield _filled(template, rng)


def real_lines(rng: random.Random, per_source: int) -> Iterator[tuple[str, str]]:
    """(source, line) of installed packages' code and metadata, of change logs, and of this repository's commits."""
    site = Path(sysconfig.get_paths()["purelib"])
    sources = {
        "python source": sorted(site.rglob("*.py")),
        "metadata and docs": sorted([*site.rglob("METADATA"), *site.rglob("*.md"), *site.rglob("*.rst")]),
        "type stubs, json, js": sorted([*site.rglob("*.pyi"), *site.rglob("*.json"), *site.rglob("*.js")]),
        "change logs": sorted([*Path("/usr/share/doc").rglob("changelog*.gz"), *Path("/usr/share/doc").rglob("NEWS*")]),
        "system configuration and scripts": [
            p
            for p in sorted(
                [
                    *Path("/etc").rglob("*.conf"),
                    *Path("/usr/bin").glob("*.sh"),
                    *Path("/usr/lib/node_modules").rglob("*.md"),
                ]
            )
            if p.is_file()
        ],
    }
    for source, files in sources.items():
        yield from ((source, line) for line in _sample(files, rng, per_source))
    log = subprocess.run(["git", "log", "--format=%s%n%b"], capture_output=True, text=True, check=False, timeout=30)
    yield from (("commit messages", line) for line in log.stdout.splitlines() if line.strip())


def _sample(files: list[Path], rng: random.Random, count: int) -> list[str]:
    if not files:
        return []
    chosen = rng.sample(files, min(len(files), 600))
    each = max(1, -(-count // len(chosen)))
    lines: list[str] = []
    for path in chosen:
        content = [line for line in _lines(path) if len(line.strip()) >= 8 and len(line) <= 2000]
        lines += rng.sample(content, min(len(content), each * 2))
    rng.shuffle(lines)
    return lines[:count]


def _lines(path: Path) -> list[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile):
        return []
    return raw[:400_000].decode("utf-8", "replace").splitlines()


def _filled(template: str, rng: random.Random) -> str:
    values = {f"sha{n}": fill(f"<hex:{n}>", rng) for n in (7, 12, 16, 32, 40, 64)}
    values |= {
        "uuid": fill("<uuid>", rng),
        "b64": fill("<b64:86>", rng),
        "a": rng.choice(WORDS),
        "b": rng.choice(WORDS),
    }
    number = rng.randint(1, 59)

    def one(match: re.Match[str]) -> str:
        name = match[1]
        if name == "n":
            return f"{number:02}" if match[2] else str(number)
        return values[name][:43] if match[2] and name == "b64" else values.get(name, match[0])

    return re.sub(r"\{(\w+)(:[^}]*)?\}", one, template)
