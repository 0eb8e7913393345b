"""Which values of an environment are secret, and how the thin clients mask them."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from agentmesh.blackboard.logic.redaction import Redaction
from agentmesh.blackboard.logic.scrub_env import mask_environment, secret_values
from agentmesh.blackboard.logic.secret_names import NameClass, classify
from benchmarks.corpus.alphabet import fill

KEY = fill("<an:32>", random.Random(5))


def test_values_of_secret_variables_become_their_names() -> None:
    masked = mask_environment(f"it fails with {KEY}!", {"OPENAI_API_KEY": KEY, "HOME": "/home/x"})
    assert masked.text == "it fails with {{OPENAI_API_KEY}}!"
    assert masked.redactions == (Redaction("OPENAI_API_KEY", 1),)


def test_the_password_within_a_url_is_masked_alone_too() -> None:
    environ = {"DATABASE_URL": "postgres://app:tr0ub4dor-77@db/x"}
    assert mask_environment("psql says tr0ub4dor-77 is wrong", environ).text == "psql says {{DATABASE_URL}} is wrong"
    assert mask_environment(environ["DATABASE_URL"], environ).text == "{{DATABASE_URL}}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSH_AUTH_SOCK", "/run/user/1000/keyring/ssh"),
        ("PASSWORD_STORE_DIR", "/home/x/.password-store"),
        ("TOKEN_TYPE", "bearertoken"),
        ("USE_API_KEY", "true"),
        ("SECRET_KEY", "changeme"),
        ("API_KEY", "short"),
        ("TOKEN_URL", "https://login.acme.dev/oauth"),
        ("DB_PASSWORD", "postgres"),
        ("PWD", "/srv/sh0p7a9b3c"),
        ("MAX_TOKENS", "128000"),
        ("AWS_SECRET_NAME", "prod-database"),
        ("PATH", KEY),
    ],
)
def test_settings_are_not_secrets(name: str, value: str) -> None:
    assert secret_values({name: value}) == ()


def test_the_longest_value_is_masked_first() -> None:
    masked = mask_environment(f"{KEY}tail1", {"A_TOKEN": KEY, "B_TOKEN": f"{KEY}tail1"})
    assert masked.text == "{{B_TOKEN}}"


def test_masking_twice_changes_nothing() -> None:
    environ = {"A_TOKEN": KEY, "NAME_KEY": "A_TOKEN9x8y7z6"}
    once = mask_environment(f"{KEY} {KEY}", environ).text
    assert mask_environment(once, environ).text == once


@pytest.mark.parametrize(
    "name",
    [
        "DB_PASSWORD",
        "apiKey",
        "X-Auth-Token",
        "client_secret",
        "PGPASSWORD",
        "aws_secret_access_key",
        "spring.datasource.password",
        "OPENAI_KEY",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert classify(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "max_token",
        "public_key",
        "primary_key",
        "token_type",
        "next_page_token",
        "cache_key",
        "secret_name",
        "tokenizer",
        "keyboard",
        "author",
        "compass",
        "password_hash",
        "key",
    ],
)
def test_names_around_secrets_are_not_taken_for_them(name: str) -> None:
    assert classify(name) is None


def test_a_seed_phrase_has_its_own_class() -> None:
    assert classify("WALLET_MNEMONIC") is NameClass.PHRASE


def test_the_thin_clients_half_imports_nothing_heavy() -> None:
    code = (
        "import sys, agentmesh.blackboard.logic.scrub_env, agentmesh.blackboard.scrub\n"
        "heavy = {'scrubadub', 'sklearn', 'numpy', 'pandas', 'fastapi', 'aioquic'} & set(sys.modules)\n"
        "sys.exit(','.join(sorted(heavy)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
