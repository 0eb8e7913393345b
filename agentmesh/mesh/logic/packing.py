"""Records and ids in pieces that one message may hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentmesh.mesh.logic.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_IDS_PER_MESSAGE
from agentmesh.mesh.logic.record import ID_BYTES, SignedRecord


def split_ids(ids: bytes) -> Iterator[bytes]:
    """The 16-byte ids of a message; a tail that is no id, and what is over the limit, is ignored."""
    end = min(len(ids) // ID_BYTES, MAX_IDS_PER_MESSAGE) * ID_BYTES
    for start in range(0, end, ID_BYTES):
        yield ids[start : start + ID_BYTES]


def join_ids(ids: Sequence[bytes]) -> Iterator[bytes]:
    """Concatenated ids, in pieces that one message may hold."""
    for start in range(0, len(ids), MAX_IDS_PER_MESSAGE):
        yield b"".join(ids[start : start + MAX_IDS_PER_MESSAGE])


def batches(records: Sequence[SignedRecord]) -> Iterator[tuple[SignedRecord, ...]]:
    """Records in pieces that one Gossip or RecordBatch may hold. The driver packs SendRecords with it too."""
    piece: list[SignedRecord] = []
    size_bytes = 0
    for record in records:
        record_bytes = len(record.body) + len(record.signature)
        if piece and (size_bytes + record_bytes > MAX_BATCH_BYTES or len(piece) >= MAX_BATCH_RECORDS):
            yield tuple(piece)
            piece, size_bytes = [], 0
        piece.append(record)
        size_bytes += record_bytes
    if piece:
        yield tuple(piece)
