"""Secrets of an environment: which variables hold one, and masking their values in a text.

Owns `mask_environment`, which the thin clients use before a text leaves their process: the agent's secrets live in its own
environment, where the node cannot see them. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from agentmesh.blackboard.logic.hidden import without_hidden
from agentmesh.blackboard.logic.redaction import Finding, Masked, kind_name, mask, resolve
from agentmesh.blackboard.logic.scrub_limits import MAX_ENV_SECRET_CHARS, MAX_ENV_SECRETS, MIN_ENV_SECRET_CHARS
from agentmesh.blackboard.logic.secret_names import names_a_secret
from agentmesh.blackboard.logic.secret_values import is_trivial

_URL_PASSWORD: Final = re.compile(r"[a-z][a-z0-9+.-]{1,30}://[^\s:@/]{0,200}:([^\s/]{1,500})@", re.IGNORECASE)


class SecretValue(msgspec.Struct, frozen=True):
    """A value that must not leave, and the placeholder's kind that stands for it."""

    kind: str
    value: str


def secret_values(environ: Mapping[str, str]) -> tuple[SecretValue, ...]:
    """The values of the variables whose name names a secret, longest first; settings such as paths and words are left out.

    The password of a URL with credentials counts for itself too.
    """
    found: dict[str, str] = {}
    for name in sorted(environ):
        value = environ[name].strip()
        url = _URL_PASSWORD.match(value)
        if url is not None and len(url[1]) >= MIN_ENV_SECRET_CHARS and not is_trivial(url[1]):
            found.setdefault(url[1], kind_name(name))
            if len(value) <= MAX_ENV_SECRET_CHARS:
                found.setdefault(value, kind_name(name))
        elif _holds_a_secret(name, value):
            found.setdefault(value, kind_name(name))
    longest_first = sorted(found, key=lambda value: (-len(value), value))
    return tuple(SecretValue(found[value], value) for value in longest_first[:MAX_ENV_SECRETS])


def mask_environment(text: str, environ: Mapping[str, str]) -> Masked:
    """The text with every secret value of the environment replaced by its variable's name: `{{OPENAI_API_KEY}}`."""
    text = without_hidden(text)
    findings: list[Finding] = []
    for secret in secret_values(environ):
        start = text.find(secret.value)
        while start >= 0:
            findings.append(Finding(secret.kind, start, start + len(secret.value), 0))
            start = text.find(secret.value, start + len(secret.value))
    return mask(text, resolve(findings, text))


def _holds_a_secret(name: str, value: str) -> bool:
    if not MIN_ENV_SECRET_CHARS <= len(value) <= MAX_ENV_SECRET_CHARS or not names_a_secret(name):
        return False
    return not is_trivial(value)
