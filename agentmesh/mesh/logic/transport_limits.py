"""Every limit of transports and streams, with its reason. Sizes in bytes unless the name says otherwise, times in seconds.

What concerns the mesh as a whole (frames, streams per peer, handshakes) is in limits.py.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MIB
from agentmesh.mesh.logic.limits import MAX_HANDSHAKES

# ------------------------------------------------------------------ streams

MAX_HEADER_BYTES: Final = 256  # kind and version take 20 bytes; the rest is for later versions
READ_BYTES: Final = 64 * KIB  # asked of a stream at once: a frame's reader holds at most this beyond its frame
MAX_REASON_BYTES: Final = 128  # of a connection's end, as carried to the far side

# ------------------------------------------------------------------ windows: what a peer can make us hold

INITIAL_STREAM_WINDOW_BYTES: Final = 128 * KIB  # one stream, before anything of it is read
INITIAL_CONNECTION_WINDOW_BYTES: Final = 256 * KIB  # all that a peer which is not admitted can make us hold
STREAM_WINDOW_BYTES: Final = 1 * MIB  # unread bytes of one stream that has shown that it is read
CONNECTION_WINDOW_BYTES: Final = 4 * MIB  # unread bytes of all streams of one connection
SEND_BUFFER_BYTES: Final = 512 * KIB  # written to one stream and not yet acknowledged, before a writer waits
SEND_RESUME_BYTES: Final = (
    256 * KIB
)  # a waiting writer goes on below this: half, so that it is not woken for every packet
MEMORY_WINDOW_BYTES: Final = 256 * KIB  # the in-memory transport's, for one stream and direction

# ------------------------------------------------------------------ handshakes

STRANGERS: Final = MAX_HANDSHAKES - MAX_HANDSHAKES // 4  # a quarter is kept for the addresses of known members
MAX_WAITING: Final = (
    256  # first datagrams from proven addresses: 1,200 bytes each as a rule, at most 16,000, so under 4 MiB
)
MAX_WAITING_PER_SOURCE: Final = 64  # so that one network does not fill the waiting room
MAX_ADDRESSES_PER_NAME: Final = 3  # of one host name, tried one after the other

# ------------------------------------------------------------------ datagrams and packets

MAX_DATAGRAM_BYTES: Final = 65_535  # what one read of the socket may return
INTERNET_DATAGRAM_BYTES: Final = 1_200  # passes every path that carries QUIC; there is no path MTU discovery
LOOPBACK_DATAGRAM_BYTES: Final = 16_000  # the loopback MTU is 65,536; a STREAM frame's two-byte length ends at 16,383
DATAGRAMS_PER_WAKEUP: Final = 64  # read in one go, then everybody else on the event loop has a turn
PACKETS_PER_TURN: Final = 64  # built in one go, then everybody else on the event loop has a turn
SEND_QUEUE_DATAGRAMS: Final = 1_024  # kept while the kernel's buffer is full; beyond it they are lost, as UDP may
SOCKET_BUFFER_BYTES: Final = 4 * MIB  # asked for; the kernel grants up to net.core.rmem_max and wmem_max
INITIAL_BURST_PACKETS: Final = 10  # RFC 9002 section 7.2
BURST_PACKETS: Final = 32  # about what one TCP segmentation offload puts on the wire: a 20 kB message goes at once
CLOSE_REPEATS: Final = 8  # times that a lost CONNECTION_CLOSE is sent again (RFC 9000 section 10.2.1)
ACK_EVERY: Final = 2  # packets, at most, without an acknowledgement (RFC 9000 section 13.2.2)

# ------------------------------------------------------------------ time

IDLE_TIMEOUT_S: Final = 10.0  # pings pass every second; ten silent seconds mean that the peer or the path is gone
TIMER_GRANULARITY_S: Final = 0.002  # what an event loop's timer may be late by; the pacer's bucket is as deep
EARLY_TIMER_S: Final = 0.0005  # event loops round timers; one that fires this much early counts as due
