"""What benchmarks/fuzz.py gives its inputs to: every parser of bytes that a peer or a stranger can send, and valid samples of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from agentmesh.blackboard.logic.cursor import FeedCursor, UnreadCursor, decode_cursor, encode_cursor
from agentmesh.blackboard.logic.post import PostPayload, decode_post, encode_post
from agentmesh.inference.logic import blob_wire
from agentmesh.inference.logic.presence import NodeOffer, decode_offer, encode_offer
from agentmesh.inference.logic.target import ServedModel
from agentmesh.mesh.identity import NodeKey, verify
from agentmesh.mesh.logic import issuing, reconcile, reconcile_wire
from agentmesh.mesh.logic.capability import verify_chain
from agentmesh.mesh.logic.certificate import decode_chain, encode_chain
from agentmesh.mesh.logic.control_messages import Granted, Renew, encode_control, parse_answer, parse_request
from agentmesh.mesh.logic.frames import FrameReader, MessageReader, decode, encode, encode_frame, encode_message
from agentmesh.mesh.logic.handshake_common import parse_message
from agentmesh.mesh.logic.handshake_messages import Hello
from agentmesh.mesh.logic.messages import Gossip, IHave, PeerEntry, Ping, Reconcile, Shuffle
from agentmesh.mesh.logic.policy import Policy, decode_policy, encode_policy
from agentmesh.mesh.logic.record import RecordBody, SignedRecord, build_record, parse_record
from agentmesh.mesh.logic.revocation import RevocationPayload, decode_revocation, encode_revocation
from agentmesh.mesh.logic.snapshot import Snapshot
from agentmesh.mesh.logic.token import InviteToken, decode_token, encode_token

NOW_MS = 1_800_000_000_000
ROOT = NodeKey(b"r" * 32)
FOUNDER = NodeKey(b"f" * 32)
MESH = ROOT.public

Parse = Callable[[bytes], object]


class _Item:
    """A record as reconciliation sees it."""

    def __init__(self, number: int) -> None:
        self.id = random.Random(number).randbytes(16)
        self.order_class = 1
        self.timestamp_ms = NOW_MS - 1_000_000 + number
        self.expires_ms = NOW_MS + 100_000_000


SNAPSHOT = Snapshot([_Item(number) for number in range(64)])


def read_frames(data: bytes) -> None:
    """Frames in two unequal feeds, then the messages in them."""
    reader, messages = FrameReader(), MessageReader()
    for part in (data[: len(data) // 3], data[len(data) // 3 :]):
        reader.feed(part)
        while (body := reader.next_frame()) is not None:
            messages.read(body)
    reader.end()


def read_record(data: bytes) -> None:
    """A record's body with any signature."""
    parse_record(SignedRecord(data, b"s" * 64), mesh=MESH)


def read_chain(data: bytes) -> None:
    """A chain, and its proof when it parses."""
    verify_chain(decode_chain(data), MESH, NOW_MS, verify)


def answer_opening(data: bytes) -> None:
    """A message that opens a reconciliation."""
    reconcile.respond(SNAPSHOT, None, data, NOW_MS)


def answer_exchange(data: bytes) -> None:
    """A message in the middle of one."""
    reconcile.respond(SNAPSHOT, reconcile.begin(SNAPSHOT, b"s" * 16, NOW_MS).state, data, NOW_MS)


TARGETS: list[tuple[str, Parse]] = [
    ("frame", read_frames),
    ("message", lambda data: MessageReader().read(data)),
    ("record", read_record),
    ("token", lambda data: decode_token(data.decode("utf-8", "replace"))),
    ("chain", read_chain),
    ("handshake", parse_message),
    ("control request", parse_request),
    ("control answer", parse_answer),
    ("policy", decode_policy),
    ("revocation", decode_revocation),
    ("reconcile wire", reconcile_wire.decode),
    ("reconcile open", answer_opening),
    ("reconcile step", answer_exchange),
    ("post", decode_post),
    ("node offer", decode_offer),
    ("blob request", lambda data: decode(data, blob_wire.request_decoder)),
    ("blob answer", lambda data: decode(data, blob_wire.answer_decoder)),
    ("blob listing", lambda data: blob_wire.usable(decode(data, blob_wire.found_decoder))),
    ("cursor", lambda data: decode_cursor(data.decode("utf-8", "replace"), FeedCursor, b"d" * 8)),
]


def samples() -> Iterator[bytes]:
    """Valid inputs, each behind the byte that names its parser."""
    number = {name: bytes([position]) for position, (name, _) in enumerate(TARGETS)}
    founder_chain = issuing.issue_founding(MESH, ROOT.sign, FOUNDER.public, NOW_MS)
    invite = NodeKey(b"i" * 32)
    invite_chain = issuing.issue_invitation(
        founder_chain, FOUNDER.sign, invite.public, NOW_MS, expires_ms=NOW_MS + 10**8
    )
    entry = PeerEntry(FOUNDER.public, ("10.0.0.1:7000",), True)
    payload = encode_post(PostPayload(text="STATUS: hello", author="me", kind="STATUS"))
    body = RecordBody(1, MESH, "post", FOUNDER.public, b"", NOW_MS, NOW_MS + 172_800_000, payload)
    record = build_record(body, FOUNDER.sign)
    opening = reconcile.begin(SNAPSHOT, b"s" * 16, NOW_MS).reply or b""
    other = Snapshot(SNAPSHOT.items[:40])
    answer = reconcile.respond(other, None, opening, NOW_MS).reply or b""
    messages = (
        Ping(1, 2, NOW_MS),
        Gossip((record.signed,), 3),
        IHave(b"i" * 32, 1),
        Reconcile(7, opening),
        Shuffle(entry, (entry,), 3),
    )
    for message in messages:
        yield number["frame"] + encode_message(message) * 2
        yield number["message"] + encode(message)
    yield number["frame"] + encode_frame(b"\x90")
    yield number["record"] + record.signed.body
    yield number["token"] + encode_token(InviteToken(invite_chain, invite.seed, "home", (entry,))).encode()
    yield number["chain"] + encode_chain(founder_chain)
    yield number["chain"] + encode_chain(invite_chain)
    yield number["handshake"] + encode(Hello(1, 1, b"n" * 16))
    yield number["control request"] + encode_control(Renew(founder_chain))
    yield number["control answer"] + encode_control(Granted(founder_chain))
    yield number["policy"] + encode_policy(Policy())
    yield number["revocation"] + encode_revocation(RevocationPayload("lost", founder_chain))
    yield number["revocation"] + encode_revocation(RevocationPayload("", invite_chain, founder_chain))
    for name in ("reconcile wire", "reconcile open", "reconcile step"):
        yield number[name] + opening
        yield number[name] + answer
    yield number["post"] + payload
    offer = NodeOffer(1, "0.1", "b1", 0, (ServedModel("m", ("n",), True, 4096, 2, ("chat",)),), True)
    yield number["node offer"] + encode_offer(offer)
    for request in (blob_wire.Probe(bytes(32)), blob_wire.Get(bytes(32), 5), blob_wire.Find("maker/Model", "main")):
        yield number["blob request"] + blob_wire.frame_of(request)[blob_wire.LENGTH_BYTES :]
    yield (
        number["blob answer"] + blob_wire.frame_of(blob_wire.Answer(blob_wire.Status.HAVE, 5))[blob_wire.LENGTH_BYTES :]
    )
    listing = blob_wire.Found("c" * 40, (blob_wire.FoundFile("m.gguf", 5, bytes(32)),))
    yield number["blob listing"] + blob_wire.frame_of(listing)[blob_wire.LENGTH_BYTES :]
    yield number["cursor"] + encode_cursor(FeedCursor(b"d" * 8, NOW_MS)).encode()
    yield number["cursor"] + encode_cursor(UnreadCursor(b"d" * 8)).encode()
