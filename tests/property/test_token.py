"""Tokens: whatever is pasted, there is one clear sentence or the very token."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentmesh.core.errors import TokenError
from agentmesh.core.units import DAY_MS
from agentmesh.mesh.authority import open_token
from agentmesh.mesh.identity import NodeKey, verify
from agentmesh.mesh.logic.certificate import leaf_of
from agentmesh.mesh.logic.issuing import issue_founding, issue_invitation
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.token import InviteToken, check_token, decode_token, encode_token

NOW_MS = 1_800_000_000_000
ROOT, FOUNDER, INVITE = NodeKey.generate(), NodeKey.generate(), NodeKey.generate()
CHAIN = issue_invitation(
    issue_founding(ROOT.public, ROOT.sign, FOUNDER.public, NOW_MS),
    FOUNDER.sign,
    INVITE.public,
    NOW_MS,
    expires_ms=NOW_MS + 7 * DAY_MS,
)
TOKEN = InviteToken(CHAIN, INVITE.seed, "home", (PeerEntry(FOUNDER.public, ("192.0.2.1:4711",), True),))
TEXT = encode_token(TOKEN)


def _packed(body: bytes, prefix: str = "amesh1.") -> str:
    """A token with a good checksum around any body."""
    packed = len(body).to_bytes(2, "big") + body
    checksum = hashlib.sha256(b"agentmesh/1 token\x00" + packed).digest()[:4]
    return prefix + base64.urlsafe_b64encode(packed + checksum).decode().rstrip("=")


def test_a_token_comes_back_and_fits_on_a_few_lines() -> None:
    assert decode_token(TEXT) == TOKEN
    assert check_token(TOKEN, NOW_MS, verify) == leaf_of(CHAIN)
    assert open_token(TOKEN, NOW_MS).public == INVITE.public
    assert len(TEXT) < 1_000


def test_what_copying_adds_is_ignored() -> None:
    wrapped = "\n  ".join(TEXT[i : i + 60] for i in range(0, len(TEXT), 60))
    assert decode_token(f' "{wrapped}"\r\n') == TOKEN


def test_neither_key_nor_text_of_a_token_is_in_its_representation() -> None:
    shown = repr(TOKEN)
    assert "seed" not in shown
    assert repr(INVITE.seed) not in shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not an invite token"),
        ("hello", "not an invite token"),
        ("amesh", "not an invite token"),
        ("Amesh1." + TEXT[7:], "not an invite token"),
        ("amesh2." + TEXT[7:], "newer version"),
        ("amesh0." + TEXT[7:], "damaged"),
        ("amesh1.", "truncated"),
        (TEXT[: len(TEXT) // 2], "truncated"),
        (TEXT[:-1], "truncated"),
        (TEXT + "AAAA", "damaged"),
        (TEXT[:50] + "!" + TEXT[51:], "damaged"),
        (TEXT[:50] + ("A" if TEXT[50] != "A" else "B") + TEXT[51:], "damaged"),
        (TEXT + "é", "damaged"),
        ("amesh1." + "A" * 20_000, "damaged"),
        (_packed(b""), "damaged"),
        (_packed(b"\xc1"), "damaged"),
        (_packed(b"\x95\x90\xc4\x00\xa0\x90\x90"), "damaged"),
    ],
)
def test_each_kind_of_bad_token_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(TokenError, match=sentence) as caught:
        decode_token(text)
    assert text[7:60] not in str(caught.value) or not text[7:60]


def test_an_expired_token_says_since_when_and_an_early_one_whose_clock_is_wrong() -> None:
    with pytest.raises(TokenError, match=r"expired on 2027-01-22 08:00 UTC"):
        check_token(TOKEN, NOW_MS + 7 * DAY_MS, verify)
    with pytest.raises(TokenError, match="clock is behind"):
        check_token(TOKEN, NOW_MS - DAY_MS, verify)


def test_a_forged_token_is_not_genuine() -> None:
    stranger = NodeKey.generate()
    forged = issue_invitation(
        issue_founding(ROOT.public, stranger.sign, FOUNDER.public, NOW_MS),
        FOUNDER.sign,
        INVITE.public,
        NOW_MS,
        expires_ms=NOW_MS + DAY_MS,
    )
    with pytest.raises(TokenError, match="not genuine"):
        check_token(InviteToken(forged, INVITE.seed, "home", ()), NOW_MS, verify)
    with pytest.raises(TokenError, match="not genuine"):
        open_token(InviteToken(CHAIN, stranger.seed, "home", ()), NOW_MS)


def test_a_member_certificate_is_no_invite() -> None:
    member = issue_founding(ROOT.public, ROOT.sign, FOUNDER.public, NOW_MS)
    with pytest.raises(TokenError, match="damaged"):
        decode_token(encode_token(InviteToken(member, FOUNDER.seed, "home", ())))


def test_too_many_addresses_make_no_token() -> None:
    far = PeerEntry(FOUNDER.public, tuple(f"{'x' * 250}.example:{port}" for port in range(1, 60)), True)
    with pytest.raises(TokenError, match="too long"):
        encode_token(InviteToken(CHAIN, INVITE.seed, "home", (far,)))


def test_the_mesh_name_in_a_token_cannot_forge_a_terminal_line() -> None:
    text = encode_token(InviteToken(CHAIN, INVITE.seed, "ho\x1b[2J\nme\u202e", ()))
    assert decode_token(text).mesh_name == "ho[2Jme"


def _only_token_errors(text: str) -> None:
    try:
        token = decode_token(text)
        check_token(token, NOW_MS, verify)
    except TokenError as error:
        assert error.message
    else:
        assert token.chain == CHAIN  # nothing but the genuine chain passes


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=200))
@example("amesh١.x")
def test_any_text_raises_only_token_errors(text: str) -> None:
    _only_token_errors(text)
    _only_token_errors("amesh1." + text)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_any_body_under_a_good_checksum_raises_only_token_errors(body: bytes) -> None:
    _only_token_errors(_packed(body))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_one_changed_character_is_always_noticed(data: st.DataObject) -> None:
    position = data.draw(st.integers(7, len(TEXT) - 1))
    character = data.draw(st.sampled_from("ABCXYZabcxyz019-_+/=é"))
    changed = TEXT[:position] + character + TEXT[position + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(TokenError):
        token = decode_token(changed)
        # The last character carries unused bits, and + and / mean the same as - and _: another form of the same token.
        if token == TOKEN and (position == len(TEXT) - 1 or character in "+/"):
            raise TokenError


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_one_changed_byte_under_a_good_checksum_never_passes_for_the_same_invite(data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TEXT[7:] + "=" * (-len(TEXT[7:]) % 4))[2:-4])
    chain_bytes = sum(len(c.body) + len(c.signature) + 8 for c in CHAIN)
    raw[data.draw(st.integers(0, chain_bytes))] ^= data.draw(st.integers(1, 255))
    try:
        open_token(decode_token(_packed(bytes(raw))), NOW_MS)
    except TokenError:
        return
    assert decode_token(_packed(bytes(raw))).chain == CHAIN
