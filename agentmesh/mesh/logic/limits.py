"""Every limit of the mesh, with its reason. Times in ms, sizes in bytes.

What arrives from a peer is held to these before it costs anything; docs/limits.md shows the same table to users and a
test keeps the two equal.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import DAY_MS, HOUR_MS, KIB, MIB, MINUTE_MS, SECOND_MS, YEAR_MS

# ------------------------------------------------------------------ frames and streams

MAX_FRAME_BYTES: Final = 1 * MIB  # one control frame; a peer that claims more is refused before allocation
MAX_BATCH_BYTES: Final = (
    256 * KIB
)  # records packed into one frame: large enough to fill a round trip, small enough to interleave
MAX_BATCH_RECORDS: Final = 512  # records in one frame: bounds the signature checks that one frame can ask for
MAX_IDS_PER_MESSAGE: Final = 4_096  # 16-byte ids in one IHave, Graft or Want: 64 KiB
MAX_OUT_QUEUE_BYTES: Final = 4 * MIB  # waiting for one peer; beyond it the peer cannot keep up and is dropped
MAX_OUT_QUEUE_RECORDS: Final = (
    400_000  # ids of records waiting for one peer: a late joiner may take the whole window, twice
)
MAX_STREAMS_PER_PEER: Final = 256  # open at once on one connection
STREAM_HEADER_TIMEOUT_MS: Final = 5 * SECOND_MS  # a stream that does not say its kind is reset

# ------------------------------------------------------------------ admission

HANDSHAKE_TIMEOUT_MS: Final = 5 * SECOND_MS  # nothing but the handshake happens before it is done
MAX_HANDSHAKES: Final = 64  # at once, in all; a quarter is kept for addresses of known members
MAX_HANDSHAKES_PER_SOURCE: Final = 4  # at once, from one source address
CONTROL_REQUESTS: Final = (
    16  # of one admitted peer (renew, vouch, pass on) in a burst; each costs chain checks and a signature
)
CONTROL_REQUESTS_PER_MS: Final = 1 / (
    2 * SECOND_MS
)  # and as many again over half a minute: people join faster only by different members
MAX_CHAIN_DEPTH: Final = 8  # certificates between root and leaf
MAX_CHAIN_CERTIFICATES: Final = 32  # certificates in one bundle, renewals and their issuers included
MAX_CHAIN_BYTES: Final = 32 * KIB
MAX_CERTIFICATE_LIFETIME_MS: Final = YEAR_MS + DAY_MS  # a member certificate lasts a year; a day of clock slack
MEMBER_LIFETIME_MS: Final = YEAR_MS
INVITE_LIFETIME_MS: Final = 7 * DAY_MS  # default of `invite --expires`
# Not just two years (a certificate below a revoked key's last one): those below it can go on renewing each other.
REVOCATION_LIFETIME_MS: Final = 10 * YEAR_MS
# Certificates and revocations in force below one invite of a founder, and below anybody further down. Whoever may
# invite makes them by the thousand and offline; 16,384 are a mesh of 10,000 that joined by one invite.
MAX_SUBTREE_CERTIFICATES: Final = 16_384
MAX_INNER_CERTIFICATES: Final = 4_096
MAX_SUBTREE_REVOCATIONS: Final = 2_048  # all are weighed anew with each that comes, and none ends within ten years
MAX_INNER_REVOCATIONS: Final = 256
# Of one member in answer to one revocation: those nearest to the founder. Whoever made puppets must not have others
# vouch for them by the thousand; who is left is vouched for when it comes back itself.
VOUCHERS_PER_REVOCATION: Final = 256
MAX_CLOCK_SKEW_MS: Final = 15 * MINUTE_MS  # a record further in the future is "not yet"
MAX_TOKEN_CHARS: Final = 16_384  # a token holds at most eight certificates and a few addresses
MAX_BOOTSTRAP_ADDRESSES: Final = 16
MAX_NAME_BYTES: Final = 64  # node, mesh and author names

# ------------------------------------------------------------------ records

MAX_PAYLOAD_BYTES: Final = 64 * KIB  # any record kind; each kind sets its own smaller limit
POST_LIFETIME_MS: Final = 48 * HOUR_MS
REFUSED_IDS: Final = 10_000  # ids refused lately, so that they are not fetched again and again
REFUSED_MEMORY_MS: Final = 10 * MINUTE_MS
PENDING_RECORDS: Final = 4_096  # "not yet" records held until their author's chain or their time comes
PENDING_BYTES: Final = 8 * MIB
SUBTREE_QUOTA_FACTOR: Final = 8  # an inviter's subtree together may post this many nodes' daily quotas
MAX_BLAME: Final = 32  # records that no honest node could have sent, before the peer is disconnected
MAX_STORE_BYTES: Final = (
    1024 * MIB
)  # the board on disk; beyond it the largest author is evicted first (local, not convergent)

# ------------------------------------------------------------------ overlay (HyParView), broadcast (Plumtree)

ACTIVE_VIEW: Final = 5  # HyParView: fan-out + 1 at 10,000 nodes
PASSIVE_VIEW: Final = 30  # HyParView: six times the active view
FULL_MESH_BELOW: Final = 8  # below this many nodes every pair that can connects
UNDIALABLE_NEIGHBOURS: Final = 64  # neighbours behind NAT, which never count against a dialable node's active view
ACTIVE_WALK: Final = 6  # HyParView ARWL
PASSIVE_WALK: Final = 3  # HyParView PRWL
SHUFFLE_EVERY_MS: Final = 10 * SECOND_MS  # after a change of neighbours
SHUFFLE_EVERY_MAX_MS: Final = 60 * SECOND_MS  # in a quiet mesh: views stay mixed for under 100 B/s a node
SHUFFLE_ROUTES: Final = 64  # shuffles passed on whose replies are still to be passed back
SHUFFLE_ACTIVE: Final = 3
SHUFFLE_PASSIVE: Final = 4
DIAL_BACKOFF_MIN_MS: Final = 500
DIAL_BACKOFF_MAX_MS: Final = 60 * SECOND_MS
ISOLATED_BACKOFF_MAX_MS: Final = 8 * SECOND_MS  # without any neighbour a node tries its known peers at least this often
MAX_DIALS: Final = 4  # overlay dials at once, so that ghosts cannot hold up the living
DIAL_TIMEOUT_MS: Final = 15 * SECOND_MS  # a dial of which the driver never tells the end
SIMULTANEOUS_MS: Final = 5 * SECOND_MS  # two connections of one pair this close together were dialled from both ends
NEIGHBOUR_TIMEOUT_MS: Final = 2 * SECOND_MS  # an unanswered Neighbour or Join is sent again
NEIGHBOUR_ATTEMPTS: Final = 3
LINGER_MS: Final = (
    30 * SECOND_MS
)  # a link that is nobody's neighbour is kept this long, for reconciliation, then closed
REACH_EVERY_MS: Final = (
    10 * SECOND_MS
)  # one lost peer is tried this often: two halves of a mesh find each other again only so
BAN_MS: Final = 10 * MINUTE_MS  # after MAX_BLAME a peer is neither dialled nor accepted this long
GRAFT_TIMEOUT_MS: Final = 1_500  # an id is announced but its payload does not come: longer than the tree's deepest path takes, or it never settles
GRAFT_RETRY_MS: Final = 500  # longer than a round trip to a far neighbour
GRAFT_ATTEMPTS: Final = 6  # then reconciliation repairs it
MISSING_IDS: Final = 16_384  # announced ids whose payload we wait for; more are left to reconciliation
ANNOUNCERS: Final = 8  # peers remembered for one missing id
DELIVERED_IDS: Final = 4_096  # who delivered an id first, so that a repeat by the same peer does not prune the tree
ANNOUNCE_BURST: Final = 512  # ids of fetched records announced at once; beyond it neighbours learn by reconciliation
ANNOUNCE_PER_SECOND: Final = 64
ANNOUNCE_OWN_AGAIN_MS: Final = 2 * SECOND_MS  # an author's own record, in case its push met only broken links
IHAVE_EVERY_MS: Final = 50  # announced ids are gathered this long

# ------------------------------------------------------------------ reconciliation

RECONCILE_EVERY_MS: Final = 30 * SECOND_MS
RECONCILE_TIMEOUT_MS: Final = 5 * SECOND_MS  # a step unanswered for this long ends the session
RECONCILE_SESSIONS: Final = 4  # at once, as responder; more are told to come back
RECONCILE_BUSY_MS: Final = (
    2 * SECOND_MS
)  # a peer with all sessions taken is asked again after this, plus as much again at random
RECONCILE_AGAIN_MS: Final = 5 * SECOND_MS  # between two sessions that we begin with the same peer
RECONCILE_FOLLOW_UPS: Final = 3  # sessions that check, at growing intervals, whether what differed arrived
RECONCILE_ATTEMPTS: Final = 3  # of a session that timed out, before the next regular one
RECONCILE_QUIET_MS: Final = 2 * SECOND_MS  # a peer whose records are still coming in would be asked for them twice
RECONCILE_MARGIN_MS: Final = MINUTE_MS  # what expires within this is left out, so that two clocks agree on the horizon
RECONCILE_BODY_BYTES: Final = (
    512 * KIB
)  # our answers; what does not fit waits for the next session, so any frame may carry one
RECONCILE_STEPS: Final = 8  # messages that one side answers in a session; three suffice
MAX_SPLIT_RANGES: Final = (
    256  # sub-ranges of one cell in one reconciliation message: bounds the searches it can ask for
)

# ------------------------------------------------------------------ failure detection (SWIM)

PROBE_EVERY_MS: Final = 1 * SECOND_MS
SUSPECT_AFTER_MS: Final = 2 * SECOND_MS
DEAD_AFTER_MS: Final = 10 * SECOND_MS  # after indirect probes were given a chance
INDIRECT_PROBES: Final = 3
PROBES_FOR_OTHERS: Final = 64  # indirect probes in progress on others' behalf
GONE_PEERS: Final = 256  # peers learnt to be gone and still shown with their state

# ------------------------------------------------------------------ gossip as a whole

EXPIRE_EVERY_MS: Final = 10 * SECOND_MS
MAX_PENDING_SHARE: Final = 4  # one peer may fill a quarter of the "not yet" pool
PENDING_HORIZON_MS: Final = (
    45 * MINUTE_MS
)  # "not yet" by time is held if it becomes acceptable this soon, else asked for again
PEER_MESSAGES_PER_SECOND: Final = 1_000  # from one peer, sustained; 10,000 records in batches of few are well below it
PEER_MESSAGES_BURST: Final = 10_000
PEER_IDS_PER_SECOND: Final = 8_192  # records that one peer may ask for
PEER_IDS_BURST: Final = 131_072  # the whole window of the budgeted mesh (100,000 posts) at once
PRESENCE_RECORDS: Final = 10_000  # sent to a peer that asks for all presence
PRESENCE_EVERY_MS: Final = 30 * SECOND_MS  # asked for, and granted to one peer, at most this often

# ------------------------------------------------------------------ peers we remember

KNOWN_PEERS: Final = 1_000
