"""Every limit of the fast path (TLS over TCP for bulk streams), with its reason. Times in ms, sizes in bytes.

Handshakes are held to the same numbers as those of QUIC: limits.py and transport_limits.py.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MINUTE_MS, SECOND_MS

# ------------------------------------------------------------------ chunks and buffers of one connection

MAX_CHUNK_BYTES: Final = 256 * KIB  # one length-prefixed chunk; larger writes go as several
# up to here a chunk's length is joined with it: one TLS record and system call less
SMALL_CHUNK_BYTES: Final = 32 * KIB
FIRST_BULK_BUFFER_BYTES: Final = 16 * KIB  # received and unread, before admission and on an idle connection
BULK_BUFFER_BYTES: Final = 128 * KIB  # received and unread of a stream that has shown that it is used
BULK_ENCRYPTED_BYTES: Final = 64 * KIB  # received, not yet decrypted for want of room, before TCP is left to wait
BULK_SEND_HIGH_BYTES: Final = 128 * KIB  # written and not yet taken by the kernel, before a writer waits
BULK_SEND_LOW_BYTES: Final = 32 * KIB  # a waiting writer goes on below this

# ------------------------------------------------------------------ connections

BULK_STREAMS_PER_CONNECTION: Final = (
    2  # the handshake's, then one of bulk; more only where both sides reuse connections
)
BULK_REUSE_MS: Final = (
    30 * MINUTE_MS
)  # after its dial a connection is given no more streams: who may be here is asked again
BULK_SERVE_MS: Final = 2 * BULK_REUSE_MS  # the listening side's bound for the same; longer than the dialler's
MAX_BULK_CONNECTIONS_PER_PEER: Final = 288  # accepted from one member: 256 streams, and those kept ready
MAX_BULK_CONNECTIONS: Final = 1_024  # accepted in all, so that file descriptors are left for everything else
# of those the ones that carry nothing: all, since a stream may be on its way to each, and closing one would break it
MAX_BULK_IDLE_PER_PEER: Final = MAX_BULK_CONNECTIONS_PER_PEER
MAX_BULK_IDLE: Final = 512  # accepted and carrying nothing, in all: half of the places are for those that are used
BULK_IDLE_MS: Final = MINUTE_MS  # a peer that no stream was opened to for this long keeps no connection ready
# an accepted connection that carries nothing is closed; longer than the dialler's
BULK_UNUSED_MS: Final = 3 * MINUTE_MS
# after a stream's end, for the far side to take what is on its way: without any progress
BULK_LINGER_MS: Final = 30 * SECOND_MS
BULK_DRAIN_MS: Final = 10 * MINUTE_MS  # after a stream's end, for a slow reader to take what the kernels hold
BULK_SHUTDOWN_MS: Final = MINUTE_MS  # of a closed connection, until the far side has taken the rest and said goodbye
BULK_ACCEPT_PAUSE_MS: Final = SECOND_MS  # when the machine has no descriptors left, before the next is accepted
# unanswered by the far machine: it or the path is gone; as long as QUIC's idle time-out
TCP_SILENT_MS: Final = 10 * SECOND_MS
TCP_KEEPALIVE_AFTER_MS: Final = 4 * SECOND_MS  # of silence, then every two seconds, three times

# ------------------------------------------------------------------ the pool of ready connections

POOL_MIN: Final = 2  # kept ready to a peer that is in use
POOL_MAX: Final = 8  # kept ready to a peer that many streams are opened to
POOL_IDLE_PER_PEER: Final = 64  # kept for reuse to one peer after many streams at once
POOL_IDLE: Final = 256  # kept idle to all peers together
POOL_SPARE_MS: Final = 10 * SECOND_MS  # idle for so long, those beyond what is kept ready are closed
POOL_DIALS: Final = 4  # begun at once to one peer: as many handshakes as it lets one source have
POOL_WAITERS: Final = 256  # streams that wait for a connection to one peer; more go over QUIC
POOL_DEMAND_MS: Final = 2 * SECOND_MS  # streams opened within this are the demand that the pool follows
POOL_SWEEP_MS: Final = 5 * SECOND_MS  # how often idle and closed connections are looked for

# ------------------------------------------------------------------ choosing the path

# a path not tried yet may take this long; then the stream goes over QUIC and the trial goes on
BULK_HEAD_START_MS: Final = 300
BULK_WAIT_MS: Final = 3 * SECOND_MS  # a path that works may take this long to give a connection
# a path that worked and then failed is left alone this long, doubled at each failure
BULK_RETRY_MS: Final = 5 * SECOND_MS
BULK_BLOCKED_MS: Final = 2 * MINUTE_MS  # a path that never worked is left alone this long, doubled at each failure
BULK_RETRY_MAX_MS: Final = 15 * MINUTE_MS
# a port that refused: for so long QUIC must show that the node lives; then failure detection knows by itself
BULK_GONE_MS: Final = 3 * SECOND_MS
BULK_PEERS: Final = 2_000  # whose path is remembered, the least lately used forgotten first
BULK_ADDRESSES: Final = 4  # of one peer that are tried, a quarter of a second apart
