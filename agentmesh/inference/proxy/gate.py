"""Who may ask, and what is refused before a body is read. Owns the API's keys.

The checks of names and origins are in logic/origin.py; here they are put in order.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from agentmesh.inference.logic.http_head import RequestHead
from agentmesh.inference.logic.origin import is_loopback_host, is_loopback_origin
from agentmesh.inference.proxy.settings import ApiSettings

LOCAL_CALLER = "local"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered with an error."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


class Gate:
    """See the module."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._asks_for_key = settings.listen_all or bool(settings.api_keys)
        self._keys = [(key.encode("utf-8"), _digest(key.encode("utf-8"))) for key in sorted(settings.api_keys)]

    def check_source(self, head: RequestHead) -> Refusal | None:
        """Whether the request may come from where it does (for preflights too, which carry no key)."""
        host = head.headers.get(b"host")
        if not self._settings.listen_all and host is not None and not is_loopback_host(host):
            return Refusal(
                403, "host_not_allowed", "This API is for this machine: ask for it as localhost, 127.0.0.1 or [::1]."
            )
        origin = head.headers.get(b"origin")
        if origin is not None and not is_loopback_origin(origin):
            return Refusal(403, "origin_not_allowed", "Pages of other sites may not use this API.")
        return None

    def is_allowed(self, origin: bytes) -> bool:
        """Whether a page of this site may read answers."""
        return is_loopback_origin(origin)

    def caller(self, head: RequestHead) -> str | Refusal:
        """Whose request it is: a key's digest, or LOCAL_CALLER where none is asked for."""
        if not self._asks_for_key:
            return LOCAL_CALLER
        given = _given_key(head)
        found = ""
        for key, digest in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key, given):
                found = digest
        if found:
            return found
        message = "Give one of this node's API keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`."
        return Refusal(401, "invalid_api_key", message, (("WWW-Authenticate", "Bearer"),))


def check_form(head: RequestHead) -> Refusal | None:
    """Whether the request has a form that is served here."""
    headers = head.headers
    if b"upgrade" in headers:
        return Refusal(426, "upgrade_required", "Only HTTP/1.1 is spoken here.", (("Upgrade", "HTTP/1.1"),))
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        return Refusal(
            415, "encoded_body", "Send the body without Content-Encoding.", (("Accept-Encoding", "identity"),)
        )
    expect = headers.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        return Refusal(417, "unknown_expectation", "The only Expect known here is 100-continue.")
    return None


def _given_key(head: RequestHead) -> bytes:
    scheme, _, key = head.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return key.strip()
    return head.headers.get(b"x-api-key", b"")


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]
