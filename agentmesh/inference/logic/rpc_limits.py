"""Every limit of the RPC relay, with its reason. Times in seconds, sizes in bytes."""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MIB

# ------------------------------------------------------------------ what a request may be

MAX_TENSOR_BYTES: Final = 1 << 40  # of one tensor; never buffered, and the exit allows what was allocated at most
MAX_GRAPH_BYTES: Final = 64 * MIB  # 200,000 tensors of 296 bytes; the largest models have some 10,000
MAX_RPC_DEVICES: Final = 16  # GGML_RPC_MAX_SERVERS is 16 over all workers
MAX_ALIGNMENT: Final = MIB  # of buffers; 32 to 256 in practice
MIN_MAX_SIZE: Final = 16 * MIB  # of one buffer; 128 MiB is the least that any backend has
MAX_OUTSTANDING_REPLIES: Final = 64  # llama.cpp awaits each reply before it asks again
MAX_BUFFERS: Final = 4_096  # of one connection; a model on a device has some ten

# ------------------------------------------------------------------ moving bytes

RPC_READ_BYTES: Final = 256 * KIB  # asked of a socket or stream at once
BULK_BLOCK_BYTES: Final = 256 * KIB  # compared with a file at once, in a thread: both fit into a processor's own cache
SEND_FILE_BYTES: Final = 8 * MIB  # of one sendfile call: between two, the thread looks whether it shall stop
BULK_POLL_S: Final = 0.2  # after which a thread that waits for a socket looks whether it shall stop
HELD_BACK_BYTES: Final = 64 * KIB  # small requests that wait for one that makes them matter
SMALL_TENSOR_BYTES: Final = 16 * KIB  # a SET_TENSOR up to this size waits for the next request
REFERENCE_MIN_BYTES: Final = 512  # a reference takes 314

# ------------------------------------------------------------------ compression

DEFLATE_MIN_BYTES: Final = 4 * KIB
DEFLATE_LEVEL: Final = 1  # graphs shrink 9 times in 0.2 ms
DEFLATE_SAMPLE_BYTES: Final = 4 * KIB  # what decides whether it is worth it: 70 us where it is not
DEFLATE_WORTH: Final = 0.75  # of its size at most, or it goes as it is
DEFLATE_INPUT_BYTES: Final = 64 * KIB  # deflated in one turn of the event loop: under a millisecond
MAX_PIECE_BYTES: Final = 96 * KIB  # DEFLATE_INPUT_BYTES that do not shrink, and zlib's own
INFLATE_BLOCK_BYTES: Final = 256 * KIB  # of a piece inflated at once: a small piece may hold much
MAX_REFUSED_NAMES: Final = 1_024  # names of tensors that did not shrink, remembered for a connection

# ------------------------------------------------------------------ streams

MAX_OPEN_FRAME_BYTES: Final = 128 * KIB  # hashes of MAX_SET_PARTS files
MAX_JOB_CHARS: Final = 200
MAX_REASON_CHARS: Final = 500
RPC_STREAM_OPEN_S: Final = 15.0  # for a stream to the worker
OPENED_WAIT_S: Final = 60.0  # for its answer: it may wait for the place, and greets its RPC server
OPEN_WAIT_S: Final = 15.0  # for the host's first frame
RPC_PLACE_WAIT_S: Final = 30.0  # until the connection before has ended: the RPC server serves one at a time
RPC_CONNECT_S: Final = 10.0  # to the RPC server on loopback
RPC_GREETING_S: Final = 10.0  # for each of its answers to HELLO, DEVICE_COUNT and the like
RPC_END_WAIT_S: Final = 5.0  # for the far side's end after ours
REPLY_OVERDUE_S: Final = 600.0  # a prompt's batch on a slow CPU takes minutes; CPU time is watched elsewhere
OVERDUE_CHECK_S: Final = 5.0
FACTS_FRESH_S: Final = 30.0  # a worker's free memory, while nothing is allocated there
MAX_GATEWAY_CONNECTIONS: Final = 16  # waiting or served; llama-server has one at a time

# ------------------------------------------------------------------ recorded hashes

MAX_HASHED_FILES: Final = 64  # parts; the oldest go first
MAX_HASH_FILE_BYTES: Final = 16 * MIB
HASH_MIN_BYTES: Final = 10 * MIB  # HASH_THRESHOLD of ggml-rpc.cpp: of tensors above it llama-server tells the hash
HASH_RUN_S: Final = 600.0  # for our own program, all parts; by then llama-server has told what it needs
MAX_HASH_RANGES: Final = 65_536  # the program takes no more
MAX_HASH_LINE_BYTES: Final = 64  # of its output: two numbers and 16 digits
