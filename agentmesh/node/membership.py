"""Which mesh this home is on: the one of the given tokens, the one it last joined, or one that it founds now.

Joining runs before the mesh does, over a transport of its own. Knows how to wait for a mesh that does not answer yet; what
a token or a certificate means is the mesh's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agentmesh.core.clock import Clock
from agentmesh.core.errors import IdentityKeyError, Unreachable
from agentmesh.core.paths import Home
from agentmesh.mesh.authority import Draft, found_mesh
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.joining import join_mesh, read_tokens
from agentmesh.mesh.logic.messages import PeerEntry
from agentmesh.mesh.logic.policy import Policy
from agentmesh.mesh.logic.token import InviteToken
from agentmesh.mesh.membership_file import MembershipFile
from agentmesh.mesh.quic import QuicTransport
from agentmesh.node.options import NodeOptions

_log = logging.getLogger(__name__)

RETRY_MIN_S: Final = 1.0
BACKGROUND_JOIN_S: Final = (
    10.0  # whoever starts a node waits START_TIMEOUT_S (control/start.py), and shall hear the reason
)
RETRY_MAX_S: Final = 30.0  # whoever waits for the other machine to come up wants to see it soon


@dataclass(frozen=True, slots=True)
class OnMesh:
    """The home's membership, what to publish first, whom to dial, and what the user should know of it."""

    membership: MembershipFile
    first: Sequence[Draft] = ()
    bootstrap: tuple[PeerEntry, ...] = ()
    notes: tuple[str, ...] = ()


async def find_mesh(
    home: Home, key: NodeKey, options: NodeOptions, name: str, clock: Clock, say: Callable[[str], None]
) -> OnMesh:
    """Join, resume or found.

    In the foreground a mesh that does not answer is tried again for ever, and `say` is told of each attempt.

    Raises:
        TokenError, InvalidInput: the tokens cannot be used.
        NotAdmitted: the mesh refused this node.
        Unreachable: nobody answered (in the background).
        HomeError, StorageError: what is in the home cannot be read or written.
    """
    present = await asyncio.to_thread(MembershipFile.current, home)
    if options.join:
        tokens = read_tokens(options.join, clock.now_ms())
        return await _join(home, key, options, name, clock, say, tokens, present)
    if present is not None:
        _check_key(home, key, present)
        ignored = ("The quotas of --policy are for a new mesh; this home is on one already.",) if options.policy else ()
        return OnMesh(present, notes=ignored)
    policy = Policy.from_overrides(options.policy)
    membership, first = await asyncio.to_thread(found_mesh, home, key, f"mesh of {name}", policy, clock.now_ms())
    return OnMesh(
        membership, first, notes=(f"Founded a new mesh, '{membership.name}'; others join it with an invite.",)
    )


def _check_key(home: Home, key: NodeKey, membership: MembershipFile) -> None:
    """A home whose key was lost got a new one, which no other member knows: its posts would reach nobody.

    Raises:
        IdentityKeyError
    """
    if membership.certificate.subject != key.public:
        raise IdentityKeyError(
            f"{home.identity_key} is not the key that joined the mesh '{membership.name}'. Put the old file back; or give it up "
            "with agentmesh leave, and join again with a new invite."
        )


async def _join(
    home: Home,
    key: NodeKey,
    options: NodeOptions,
    name: str,
    clock: Clock,
    say: Callable[[str], None],
    tokens: Sequence[InviteToken],
    present: MembershipFile | None,
) -> OnMesh:
    delay_s = RETRY_MIN_S
    while True:
        transport = QuicTransport(key)
        try:
            async with asyncio.timeout(BACKGROUND_JOIN_S if options.background else None):
                joined = await join_mesh(tokens, home, key, transport, clock, name)
            break
        except TimeoutError as error:
            tried = ", ".join(dict.fromkeys(a for t in tokens for entry in t.bootstrap for a in entry.addresses))
            raise Unreachable(f"None of the mesh's nodes that the invite names answered in time ({tried}).") from error
        except Unreachable as error:
            if options.background:
                raise
            say(f"{error.message} Trying again in {delay_s:.0f} s.")
        finally:
            await transport.close()
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, RETRY_MAX_S)
    return OnMesh(joined.membership, joined.publish, joined.bootstrap, _switch_note(present, joined.membership))


def _switch_note(before: MembershipFile | None, now: MembershipFile) -> tuple[str, ...]:
    if before is None:
        return (f"Joined the mesh '{now.name}'.",)
    if before.mesh == now.mesh:
        return ()
    return (
        f"Switched from the mesh '{before.name}' to '{now.name}'. The board of '{before.name}' stays in this home.",
    )
