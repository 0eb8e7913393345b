"""What a node knows of its mesh when it starts: trust and index, rebuilt from the store."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from agentmesh.core.errors import ProtocolError
from agentmesh.mesh.logic.kinds import KindRule
from agentmesh.mesh.logic.record import Record, SignedRecord, Verify, parse_record
from agentmesh.mesh.logic.records import RecordIndex
from agentmesh.mesh.logic.trust import TRUST_KINDS, Outcome, Trust
from agentmesh.mesh.store import RecordStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MeshState:
    """The pure state that the gossip machine works on."""

    trust: Trust
    index: RecordIndex


async def load_state(
    mesh: bytes, store: RecordStore, rules: dict[str, KindRule], verify: Verify, now_ms: int
) -> MeshState:
    """Rebuild trust, then the index, from what is stored; what is no longer kept is dropped from the store.

    Raises:
        StorageError: the store cannot be read.
    """
    trust = Trust(mesh, verify)
    gone: list[bytes] = []
    waiting: list[bytes] = []
    for kind in TRUST_KINDS:
        for signed in await store.load_kind(kind):
            record = _parse(signed, mesh)
            if record is None:
                continue
            outcome = trust.consider(record, now_ms, from_store=True).outcome
            if outcome is Outcome.REFUSED:
                gone.append(record.id)
            elif outcome is Outcome.NOT_YET:  # this clock is behind: a peer offers it again when it is set right
                waiting.append(record.id)
    changes = trust.take_changes()
    gone += changes.dropped
    index = RecordIndex(rules, trust.standing, trust.scopes, trust.policy)
    entries, tombstones = await store.load_index()
    absent = frozenset((*gone, *waiting))
    dropped = index.restore([entry for entry in entries if entry.id not in absent], tombstones, now_ms)
    await store.drop([*gone, *dropped])
    _log.info("loaded %d records, dropped %d", len(index), len(gone) + len(dropped))
    return MeshState(trust, index)


def _parse(signed: SignedRecord, mesh: bytes) -> Record | None:
    try:
        return parse_record(signed, mesh=mesh)
    except ProtocolError as error:
        _log.error("a stored record is damaged: %s", error)
        return None
