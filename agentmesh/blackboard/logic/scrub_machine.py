"""What gives this machine and its user away: home directories, user and host names, the values of secret variables.

Owns how what is known of the machine is found in a text; `ScrubContext` carries it as values, gathered by scrub.py.
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from agentmesh.blackboard.logic.redaction import HOME_KIND, Finding
from agentmesh.blackboard.logic.scrub_env import SecretValue
from agentmesh.blackboard.logic.scrub_limits import MIN_NAME_CHARS

ENV_RANK: Final = 0
HOME_RANK: Final = 55
NAME_RANK: Final = 70

# Names that say nothing of anybody: system accounts, defaults of images, words of ordinary text.
EVERYDAY_NAMES: Final = frozenset(
    "admin administrator agent agents alpine analysis android apache apollo apple atlas azure azureuser backup bitnami board bootstrap build builder "
    "builds buildkite cache centos circleci claude client cloud cluster codespace coder codex computer config container coreos daemon data debian default "
    "demo deploy deployer desktop developer devel docker domain dummy ec2-user engine example fedora ghost gitlab github gitpod google guest hello home "
    "host hostname internal jenkins jovyan jupyter kernel kubernetes laptop lighttpd linux local localdomain localhost login machine macbook mail "
    "master media memory mesh michael minio model mongodb mysql network nginx nobody node nodejs openclaw opc operator oracle owner people person "
    "playground postgres private production project public python rails redis remote render robot root router runner sandbox scanner script secret server "
    "service shared shell source spark staging static storage student superuser support sysadmin system target temp terminal test tester testing "
    "tomcat travis ubuntu unknown upload user username users vagrant vercel virtual vscode web webmaster website windows worker workspace world "
    "www-data".split()
)

_HOME: Final = re.compile(
    r"(?<![\w.~-])(?:/(?:home|Users|export/home|var/home)/(?P<posix>[A-Za-z_][A-Za-z0-9._-]{0,31}+)|[A-Za-z]:(?P<slash>\\{1,2}|/)Users(?P=slash)(?P<windows>[A-Za-z0-9_][A-Za-z0-9._ -]{0,31}?)(?=[\\/\"'\s]|$))(?![A-Za-z0-9_-])"
)
_SHARED_HOMES: Final = frozenset("shared public default all".split())


class ScrubContext(msgspec.Struct, frozen=True):
    """What is known of the machine on which the node runs."""

    homes: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    secrets: tuple[SecretValue, ...] = ()


def find_machine(text: str, context: ScrubContext) -> Iterator[Finding]:
    """Values of secret variables, home directories, and the names of users and hosts."""
    for secret in context.secrets:
        yield from _occurrences(text, secret.value, secret.kind)
    if context.homes:
        for match in _known_homes(context.homes).finditer(text):
            yield Finding(HOME_KIND, match.start(), match.end(), HOME_RANK)
    if "home/" in text or "Users" in text:
        for match in _HOME.finditer(text):
            name = (match["posix"] or match["windows"]).rstrip(".")
            if name.lower() not in EVERYDAY_NAMES and name.lower() not in _SHARED_HOMES:
                yield Finding(
                    HOME_KIND,
                    match.start(),
                    match.end() - len(match["posix"] or "") + len(name) if match["posix"] else match.end(),
                    HOME_RANK,
                )
    for kind, names in (("USER", context.users), ("HOST", context.hosts)):
        pattern = _names(names)
        if pattern is not None:
            for match in pattern.finditer(text):
                if not _is_topic(text, match.start(), match.end()):
                    yield Finding(kind, match.start(), match.end(), NAME_RANK)


def worth_masking(name: str) -> bool:
    """Whether a user or host name is long and rare enough that finding it in a text means something."""
    return len(name) >= MIN_NAME_CHARS and name.lower() not in EVERYDAY_NAMES and not name.isdigit()


def _occurrences(text: str, value: str, kind: str) -> Iterator[Finding]:
    start = text.find(value)
    while start >= 0:
        yield Finding(kind, start, start + len(value), ENV_RANK)
        start = text.find(value, start + len(value))


def _is_topic(text: str, start: int, end: int) -> bool:
    """The organisation of `[org/repo]` is the board's address, chosen by the poster, even where it is also a user's name."""
    return text[start - 1 : start] == "[" and text[end : end + 1] == "/"


@lru_cache(maxsize=8)
def _known_homes(homes: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(homes, key=lambda home: (-len(home), home))
    return re.compile(
        "(?<![A-Za-z0-9_.~-])(?:" + "|".join(re.escape(home) for home in longest_first) + ")(?![A-Za-z0-9_.-])"
    )


@lru_cache(maxsize=16)
def _names(names: Sequence[str]) -> re.Pattern[str] | None:
    kept = sorted((name for name in names if worth_masking(name)), key=lambda name: (-len(name), name))
    if not kept:
        return None
    return re.compile(
        "(?<![A-Za-z0-9_])(?:" + "|".join(re.escape(name) for name in kept) + ")(?![A-Za-z0-9_])", re.IGNORECASE
    )
