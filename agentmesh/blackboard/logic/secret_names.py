"""Which identifiers name a secret: `DB_PASSWORD`, `apiKey`, `X-Auth-Token`, but not `max_tokens`, `public_key`, `token_type`.

Owns the vocabulary of names. Knows nothing of values. Light: the thin clients use it on their environment.
"""

# ruff: noqa: SIM905  word lists are read more easily as text

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Final


class NameClass(Enum):
    """What a name promises of its value."""

    PASSWORD = "PASSWORD"  # noqa: S105  chosen by a person: any word with a digit or a sign
    TOKEN = "SECRET"  # noqa: S105  made by a machine: long and random
    PHRASE = "SEED_PHRASE"  # twelve or more words


# Every name that `classify` accepts holds one of these (lower case): a cheap test before the careful one.
HINTS: Final = (
    "pass",
    "pwd",
    "pw",
    "secret",
    "token",
    "key",
    "cred",
    "auth",
    "sig",
    "mnemonic",
    "phrase",
    "pat",
    "dsn",
    "cookie",
    "sess",
    "salt",
    "webhook",
)

_PASSWORD_WORDS: Final = frozenset(
    "password passwd passwort passphrase passcode pwd pw pass userpass dbpass dbpassword rootpassword mypassword userpassword adminpassword psw passw".split()
)
_TOKEN_WORDS: Final = frozenset(
    "secret token apikey accesskey secretkey privatekey authkey authtoken accesstoken refreshtoken apitoken apisecret clientsecret appsecret "
    "appkey masterkey accountkey sessionkey encryptionkey signingkey servicekey sharedkey sharedaccesskey storagekey subscriptionkey bottoken "
    "idtoken bearertoken usertoken sessiontoken sessionid sessid sid phpsessid jsessionid pat credential creds authorization authcode otpsecret "
    "licensekey webhooksecret jwtsecret secretaccesskey accesskeysecret deploykey cookiesecret pepper connectsid privkey".split()
)
_KEY_QUALIFIERS: Final = frozenset(
    "api access secret private auth signing sign encryption encrypt crypt master account session service shared storage subscription app license "
    "licence deploy admin client consumer webhook hmac jwt cipher aes fernet ssh wg wireguard bot server root write read function host project ingest "
    "integration routing integrationkey user personal developer publishable restricted live test rsa ec hash instrumentation".split()
)
_VENDORS: Final = frozenset(
    "openai anthropic claude gemini mistral cohere groq deepseek together replicate huggingface hf perplexity openrouter xai azure aws gcp google "
    "stripe twilio sendgrid mailgun mailchimp postmark algolia datadog newrelic sentry heroku cloudflare fastly digitalocean linode vultr netlify "
    "vercel supabase firebase github gitlab bitbucket circleci travis codecov coveralls snyk sonar pinecone weaviate qdrant cohere voyage tavily "
    "serpapi elevenlabs assemblyai deepgram wandb langsmith okta auth0 plaid shopify dd rapidapi maps infura alchemy etherscan binance kraken "
    "segment amplitude mixpanel intercom zendesk hubspot pagerduty opsgenie trello asana jira confluence notion airtable figma dropbox fireworks".split()
)
# Words after which the value is about a secret, not one: `token_type`, `secret_name`, `password_length`.
_TAIL_WORDS_DROPPED: Final = frozenset(
    "value val prod production dev development staging stage live test env raw plain text str string base64 b64 hex default new old current v1 v2 primary secondary".split()
)
# Words before `token`, `key`, `secret` that make it something else.
_NOT_BEFORE: Final = frozenset(
    "max min num n total next page continuation cancellation cancel eos bos pad unk sep cls mask stop start end first last prev previous per "
    "special input output prompt completion count no public primary foreign sort partition cache dict map hash index lookup row column "
    "unique natural composite object group parse parser lexer expect peek consume generate keyword operator punctuation name sync path is has use "
    "needs require requires without missing invalid bad wrong get fetch read load create make delete remove revoke check verify validate "
    "change reset forgot confirm enter hide show encode decode hashed".split()
)
_SEPARATORS: Final = re.compile(r"[^A-Za-z0-9]+")
_CAMEL: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def words_of(identifier: str) -> list[str]:
    """The words of a snake, kebab, dotted or camel case name, in lower case."""
    words: list[str] = []
    for part in _SEPARATORS.split(identifier):
        if part.isupper() or part.islower():
            words.append(part.lower())
        else:
            words += [w.lower() for w in _CAMEL.findall(part)]
    return words


@lru_cache(maxsize=2048)
def classify(identifier: str) -> NameClass | None:
    """What kind of secret a variable, field or flag of this name holds; None: none."""
    words = words_of(identifier)
    while len(words) > 1 and (words[-1] in _TAIL_WORDS_DROPPED or words[-1].isdigit()):
        words.pop()
    if not words:
        return None
    last = words[-1].rstrip("0123456789") or words[-1]
    before = words[-2] if len(words) > 1 else ""
    if last in {"mnemonic", "seedphrase", "seedwords"} or (
        last in {"phrase", "words"} and before in {"seed", "recovery", "mnemonic"}
    ):
        return NameClass.PHRASE
    if last in _PASSWORD_WORDS or last.endswith(("password", "passwd", "passphrase")):
        return None if before in _NOT_BEFORE and before not in {"root", "user"} else NameClass.PASSWORD
    return NameClass.TOKEN if _is_token_name(words, last, before) else None


def _is_token_name(words: list[str], last: str, before: str) -> bool:
    if before in _NOT_BEFORE:
        return False
    if last in _TOKEN_WORDS:
        return True
    if last == "key":
        return before in _KEY_QUALIFIERS or before in _VENDORS or "secret" in words
    if last == "auth":
        return len(words) == 1 or before in {"http", "npm", "basic", "registry"}
    if last == "id":
        return before == "session"
    return last == "dsn" and len(words) == 1


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret. Wider than `classify`: nothing else is called so there."""
    if variable.upper() in {"PWD", "OLDPWD"}:
        return False
    words = words_of(variable)
    if classify(variable) is not None or words[-1:] == ["key"]:
        return True
    tail = tuple(words[-2:])
    return words[-1:] in (["dsn"], ["auth"], ["credentials"], ["tokens"], ["secrets"], ["passwords"], ["keys"]) or tail in {
        ("database", "url"), ("db", "url"), ("redis", "url"), ("mongo", "url"), ("mongodb", "uri"), ("mongo", "uri"),
        ("database", "uri"), ("webhook", "url"), ("connection", "string"), ("broker", "url"), ("amqp", "url"), ("postgres", "url"),
    }  # fmt: skip
