"""Which names and origins are this machine's own."""

from __future__ import annotations

import pytest

from agentmesh.inference.logic.origin import is_loopback_host, is_loopback_origin, preflight_fields


@pytest.mark.parametrize("host", [b"localhost", b"LocalHost:1", b"127.0.0.1:65535", b"[::1]", b"[::1]:9337"])
def test_loopback_names_are_ours(host: bytes) -> None:
    assert is_loopback_host(host)
    assert is_loopback_origin(b"http://" + host)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"localhost.",
        b"localhost:",
        b"localhost:999999",
        b"a.localhost",
        b"127.0.0.2",
        b"::1",
        b"localhost\n",
        b"user@localhost",
    ],
)
def test_other_names_are_not(host: bytes) -> None:
    assert not is_loopback_host(host)
    assert not is_loopback_origin(b"http://" + host)


@pytest.mark.parametrize(
    "origin", [b"null", b"", b"localhost", b"file://localhost", b"http://localhost/", b"http://localhost, http://evil"]
)
def test_what_is_no_loopback_page_is_refused(origin: bytes) -> None:
    assert not is_loopback_origin(origin)


def test_a_preflight_does_not_echo_what_is_no_list_of_names() -> None:
    fields = preflight_fields(b"http://localhost", b"x\r\nSet-Cookie: a")
    assert b"Set-Cookie" not in fields
    assert b"Allow-Headers: content-type, authorization" in fields
