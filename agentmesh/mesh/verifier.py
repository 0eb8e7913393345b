"""Signature checks that do not stall the event loop.

The gossip machine checks every record's signature as it takes it in (about 0.1 ms each). A single record is checked
there and then; a batch is checked beforehand in a thread, and the machine finds the answers here. Only good signatures
are remembered, so a peer cannot fill the memory with bad ones.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.identity import verify
from agentmesh.mesh.logic.limits import MAX_BATCH_RECORDS
from agentmesh.mesh.logic.record import SignedRecord, parse_record, signing_bytes

_REMEMBERED: Final = 8_192  # good signatures, 16 bytes each: several batches from several peers
_WORTH_A_THREAD: Final = 8  # signatures; below that the hand-over costs more than it saves
_THREADS: Final = 2  # at once: batches of many peers must not take every thread that the disk needs too


class CachingVerifier:
    """`verify` with a memory of good signatures; an instance is itself the function that the machine calls."""

    def __init__(self, mesh: bytes) -> None:
        self._mesh = mesh
        self._good: dict[bytes, None] = {}
        self._threads = asyncio.Semaphore(_THREADS)

    def __call__(self, public_key: bytes, signature: bytes, message: bytes) -> bool:
        name = _name(public_key, signature, message)
        if name in self._good:
            return True
        if not verify(public_key, signature, message):
            return False
        self._remember(name)
        return True

    async def prepare(self, records: Sequence[SignedRecord]) -> None:
        """Check a batch in a thread; those that are good will be answered from memory."""
        if len(records) < _WORTH_A_THREAD:
            return
        async with self._threads:
            found = await asyncio.to_thread(
                self._check, records[:MAX_BATCH_RECORDS]
            )  # the machine reads no more either
        for name in found:
            self._remember(name)

    def _check(self, records: Sequence[SignedRecord]) -> list[bytes]:
        good: list[bytes] = []
        for signed in records:
            try:
                author = parse_record(signed, mesh=self._mesh).author
            except ProtocolError:
                continue  # the machine refuses it and holds it against the sender
            message = signing_bytes(signed.body)
            if verify(author, signed.signature, message):
                good.append(_name(author, signed.signature, message))
        return good

    def _remember(self, name: bytes) -> None:
        self._good[name] = None
        while len(self._good) > _REMEMBERED:
            del self._good[next(iter(self._good))]


def _name(public_key: bytes, signature: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(public_key + signature + message, digest_size=16).digest()
