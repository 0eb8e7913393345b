"""Every limit of giving and fetching model files over the mesh, with its reason. Times in seconds, sizes in bytes."""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MIB

# ------------------------------------------------------------------ messages

MAX_BLOB_REQUEST_BYTES: Final = 4 * KIB  # a repository's name, a revision, a hash
MAX_BLOB_ANSWER_BYTES: Final = 256 * KIB  # a listing of MAX_LISTED_FILES paths of usual length
MAX_LISTED_FILES: Final = 1_024  # of one repository at one revision; a set has at most as many parts
MAX_BLOB_REQUESTS: Final = 8  # on one stream: whoever has the file is asked on the stream that fetches it

# ------------------------------------------------------------------ giving

MAX_UPLOADS: Final = 8  # files on their way out at once, each with two blocks in memory and a thread that reads
MAX_UPLOADS_PER_PEER: Final = 2  # so that one member does not take all of them
READ_BLOCK_BYTES: Final = 2 * MIB  # read from disk at once, in a thread
WRITE_PIECE_BYTES: Final = 128 * KIB  # encrypted in one turn of the event loop: a fraction of a millisecond
REQUEST_TIMEOUT_S: Final = 15.0  # between two requests on one stream
UPLOAD_STALL_S: Final = 30.0  # a peer that does not take one piece for so long is let go
MAX_OFFERED_FILES: Final = 4_096  # as many as FileIdentities remembers
INDEX_AGE_S: Final = 10.0  # what lies in the cache is looked up again after this

# ------------------------------------------------------------------ fetching

PEERS_ASKED_AT_ONCE: Final = 16  # members asked side by side who has a file
MAX_PEERS_ASKED: Final = 64  # for one file, then the next source is asked
ASK_TIMEOUT_S: Final = 5.0  # for a stream and its answer; a mesh member answers in milliseconds
FETCH_STALL_S: Final = 20.0  # without a single byte: the peer is left
SLOW_BYTES_PER_S: Final = 512 * KIB  # below it another peer, or the next source, is tried
SLOW_WINDOW_S: Final = 10.0  # over which the rate is taken
QUEUED_PIECES: Final = 8  # between the event loop and the thread that writes
PIECE_BYTES: Final = 1 * MIB  # gathered before it is handed over: waking a thread costs about 50 us
PATIENT_RETRY_S: Final = 5.0  # everybody who has the file is busy and there is no other source
MAX_DISTRUSTED_FILES: Final = 256  # of which it is remembered who gave wrong content
