"""The mesh's policy: the quotas that its root key sets for everyone. What they count is in quota.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agentmesh.core.errors import InvalidInput, ProtocolError

POLICY_VERSION: Final = 1
MAX_QUOTA: Final = 10_000_000  # a number that a day cannot reach; keeps products in 64 bits
MAX_POLICY_BYTES: Final = 4_096


class Policy(msgspec.Struct, array_like=True, frozen=True):
    """Quotas of one mesh. Fields added by later versions follow at the end and are ignored."""

    version: int = POLICY_VERSION
    posts_per_minute: int = 120
    """Of one author's node, by the posts' signed times."""
    posts_per_day: int = 2_500
    """Likewise, in a UTC day. An inviter's whole subtree has SUBTREE_QUOTA_FACTOR times this."""
    author_posts_per_minute: int = 10
    """What a node lets each author name post through it."""

    @classmethod
    def from_overrides(cls, overrides: Mapping[str, int]) -> Policy:
        """The default with these changes. Raising posts_per_minute raises what is not given in proportion.

        Raises:
            InvalidInput: an unknown name, or a number out of range.
        """
        for name, value in overrides.items():
            if name not in QUOTA_NAMES:
                raise InvalidInput(f"'{name}' is not a policy; there are {', '.join(QUOTA_NAMES)}.")
            if not 0 < value <= MAX_QUOTA:
                raise InvalidInput(f"The policy {name} takes a number from 1 to {MAX_QUOTA:,}.")
        default = cls()
        per_minute = overrides.get("posts_per_minute", default.posts_per_minute)

        def derived(name: str, value: int) -> int:
            in_proportion = -(-value * per_minute // default.posts_per_minute)  # rounded up
            return overrides.get(name, min(max(value, in_proportion), MAX_QUOTA))

        return cls(
            posts_per_minute=per_minute,
            posts_per_day=derived("posts_per_day", default.posts_per_day),
            author_posts_per_minute=derived("author_posts_per_minute", default.author_posts_per_minute),
        )

    def quotas(self) -> dict[str, int]:
        """What `status` shows."""
        return {name: getattr(self, name) for name in QUOTA_NAMES}


QUOTA_NAMES: Final = ("posts_per_minute", "posts_per_day", "author_posts_per_minute")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Policy)


def encode_policy(policy: Policy) -> bytes:
    """The payload of a policy record."""
    return _encoder.encode(policy)


def decode_policy(payload: bytes) -> Policy:
    """The policy in a record's payload.

    Raises:
        ProtocolError: it is not one.
    """
    if len(payload) > MAX_POLICY_BYTES:
        raise ProtocolError("A policy is over its limit.")
    try:
        policy = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A policy is malformed: {error}") from error
    if policy.version < POLICY_VERSION or not all(0 < value <= MAX_QUOTA for value in policy.quotas().values()):
        raise ProtocolError("A policy has an impossible value.")
    return policy
