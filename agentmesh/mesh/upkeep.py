"""What a member does from time to time: renew its certificate, ask for a voucher, vouch for others, remember its peers.

State: revocations that are due to be answered with vouchers. Owner: the event loop, in one task.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from agentmesh.core.errors import AgentMeshError, StorageError
from agentmesh.mesh.admission import Admission
from agentmesh.mesh.authority import Authority, Draft
from agentmesh.mesh.logic.record import KEY_BYTES, Record
from agentmesh.mesh.logic.trust import Trust
from agentmesh.mesh.peers import Peers

_log = logging.getLogger(__name__)

EVERY_S: Final = 60.0  # certificates change over months; a first round comes soon after the start
FIRST_S: Final = 5.0
SAVE_PEERS_EVERY: Final = 5  # rounds
# Members answer a node's revocation one after the other, by a rank that differs for each revocation, so that few vouch
# for the same subject (guess: a record spreads within a second).
VOUCH_AFTER_S: Final = 2.0
VOUCH_RANKS: Final = 15


class Upkeep:
    """Runs for as long as its mesh."""

    def __init__(
        self,
        authority: Authority,
        admission: Admission,
        trust: Trust,
        peers: Peers,
        publish: Callable[[Draft], Awaitable[None]],
    ) -> None:
        self._authority = authority
        self._admission = admission
        self._trust = trust
        self._peers = peers
        self._publish = publish
        self._due: list[tuple[float, bytes]] = []
        self._wake = asyncio.Event()

    async def on_records(self, records: Sequence[Record]) -> None:
        """A node was revoked: those below it whom this node knew may need its word."""
        for record in records:
            if record.kind == "revocation" and len(record.subkey) == KEY_BYTES and record.author != record.subkey:
                delay_s = VOUCH_AFTER_S * (1 + self._rank(record.id))
                self._due.append((asyncio.get_running_loop().time() + delay_s, record.subkey))
                self._wake.set()

    def _rank(self, revocation: bytes) -> int:
        digest = hashlib.blake2b(revocation + self._authority.key.public, digest_size=4).digest()
        return int.from_bytes(digest, "big") % VOUCH_RANKS

    async def run(self) -> None:
        """One round after another, until cancelled."""
        loop = asyncio.get_running_loop()
        next_round, rounds = loop.time() + FIRST_S, 0
        while True:
            wait_s = min([next_round, *(at for at, _ in self._due)]) - loop.time()
            self._wake.clear()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # wait_for may lose a cancellation
                        await self._wake.wait()
            is_round = loop.time() >= next_round
            if is_round:
                next_round, rounds = loop.time() + EVERY_S, rounds + 1
            try:
                await self._vouch(loop.time())
                if is_round:
                    await self._mend_own_chain()
            except Exception:  # noqa: BLE001 - a task's root: it must be here next year, when the certificate ends
                _log.exception("a round of upkeep broke; the next one comes")
            if is_round and rounds % SAVE_PEERS_EVERY == 1:
                self.save_peers()

    async def _vouch(self, now_s: float) -> None:
        due = [target for at, target in self._due if at <= now_s]
        self._due = [(at, target) for at, target in self._due if at > now_s]
        for target in due:
            for draft in self._authority.vouchers(target):
                try:
                    await self._publish(draft)
                except AgentMeshError as error:
                    _log.warning("a voucher could not be published: %s", error)

    async def _mend_own_chain(self) -> None:
        try:
            draft = await self._authority.maintain()
            if draft is None and self._authority.renewal_is_due():
                draft = await self._renewed_by_a_peer()
            if draft is not None:
                await self._publish(draft)
        except AgentMeshError as error:
            _log.warning("this node's membership could not be renewed: %s", error)

    async def _renewed_by_a_peer(self) -> Draft | None:
        for node in list(self._peers.driver.links):
            stream = await self._peers.reach(node)
            if stream is None:
                continue
            try:
                return await self._admission.request_renewal(stream)
            except AgentMeshError as error:
                _log.info("%s did not renew this node's membership: %s", node.hex()[:8], error)
        return None

    def save_peers(self) -> None:
        """Keep who was seen lately, for the next start."""
        known = {peer.node: peer for peer in self._authority.membership.peers()}
        known |= {peer.node: peer for peer in self._peers.known()}
        try:
            self._authority.membership.save_peers(tuple(known.values()))
        except StorageError as error:
            _log.warning("known peers were not saved: %s", error)
