"""Every limit and time-out of the API proxy's data path, with its reason. docs/proxy.md says what happens beyond each."""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MIB

# ------------------------------------------------------------------ heads

MAX_HEAD_BYTES: Final = (
    32 * KIB
)  # of a request or a response; nginx allows 4 x 8 KiB, browsers with many cookies send 8 to 16
MAX_HEADERS: Final = 100  # in one head; nginx and Go take as many as fit, real clients send 10 to 20
MAX_CHUNK_LINE_BYTES: Final = 256  # a chunk's size and its extensions, which nobody uses
MAX_TRAILER_BYTES: Final = 8 * KIB  # after a chunked body; thrown away
MAX_LENGTH_DIGITS: Final = 15  # of a Content-Length or a chunk's size: below 2**53
MAX_EMPTY_LINES: Final = 2  # before a request line (RFC 9112 section 2.2 asks for one)

# ------------------------------------------------------------------ bodies

MAX_BODY_BYTES: Final = 64 * MIB  # of one request: a long conversation with some images in it
MAX_BODIES_BYTES: Final = 512 * MIB  # of all requests together, in memory and on disk
SPILL_BYTES: Final = MIB  # a body beyond it waits in an unlinked file; most are far below
PIECE_BYTES: Final = 256 * KIB  # of a spilled body, handed on at once

# ------------------------------------------------------------------ buffers

WRITE_HIGH_BYTES: Final = 64 * KIB  # waiting for one reader; above it its source is paused
PIPELINED_BYTES: Final = 64 * KIB  # requests that wait behind the present one; above it the client is not read
READ_BYTES: Final = 64 * KIB  # of a mesh stream at once
KEPT_ERROR_BYTES: Final = 16 * KIB  # of a failed target's answer, to quote its reason

# ------------------------------------------------------------------ numbers

MAX_CONNECTIONS: Final = 1_024  # of clients; each costs a few KiB while idle
REQUESTS_A_TURN: Final = 16  # taken from one connection before others have their turn; some answers take 1 ms to make
MAX_PEER_REQUESTS: Final = 512  # from all peers at once
MAX_REQUESTS_OF_A_PEER: Final = 128  # at once: more than engines have slots, and others find room beside it
PEERS_SHARE_OF_BODIES: Final = 2  # one part in so many of MAX_BODIES_BYTES: members must not keep out this node's users
MAX_ATTEMPTS: Final = 8  # targets tried for one request
MAX_BUSY_ANSWERS: Final = 120  # "busy" from hosts that others fill: at one a second as long as the queue's own wait
# To one engine, and never more than its slots: an idle one holds one of its threads, of which it has two for each slot.
MAX_IDLE_ENGINE_CONNECTIONS: Final = 512
MAX_KNOWN_HEADS: Final = 64  # of requests to one engine, in different words; then they are forgotten
# For gc.set_threshold. Python's own 700 is reached by 60 requests at once, none of which leaves any garbage in cycles.
# What it saves is near the noise: a few per cent of a request's CPU time at best.
GC_THRESHOLDS: Final = (20_000, 20, 20)

# ------------------------------------------------------------------ waiting

HEADER_TIMEOUT_S: Final = 15.0  # from a head's first byte to its last: slow on purpose is an attack
BODY_IDLE_S: Final = 30.0  # between two reads of a body
BODY_TOTAL_S: Final = 600.0  # 64 MiB at 110 KiB/s
KEEP_ALIVE_S: Final = 75.0  # an idle client; nginx's default
WRITE_STALL_S: Final = 120.0  # a client that takes no byte at all while its answer waits
LINGER_S: Final = (
    2.0  # after a refusal, until the rest of what the client sends is no longer read (a reset would lose it)
)
CONNECT_S: Final = 1.0  # to an engine on this machine
PEER_OPEN_S: Final = (
    1.5  # a stream to a peer; together with a refusal it keeps within the 2 s for a host that was killed
)
FIRST_BYTE_S: Final = 3_600.0  # an engine may think this long before its first byte: 100,000 tokens of prompt on a CPU
ANSWER_IDLE_S: Final = 600.0  # between two pieces of an answer, while the other side seems alive
ENGINE_IDLE_S: Final = 4.0  # an unused connection to an engine; llama-server closes its own after 5
PEER_END_S: Final = 5.0  # for a peer's end of a stream after its answer was whole
SWEEP_S: Final = 0.5  # how often deadlines are looked at, hence how late each may be noticed
PROBES_S: Final = (0.05, 0.2, 1.0)  # between looks at whether a client that ended its side is still there; then PROBE_S
PROBE_S: Final = 10.0
DRAIN_S: Final = 10.0  # answers in progress when the node stops
