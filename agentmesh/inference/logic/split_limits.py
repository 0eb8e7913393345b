"""Every bound of plans for models bigger than one machine, of planning again, and of drafts."""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MIB, MINUTE_MS, SECOND_MS

# ---------------------------------------------------------------- who takes part

MAX_RTT_MS: Final = 80  # each token waits for it once a worker
KEPT_RTT_MS: Final = 100  # a running split bears a quarter more before it is given up
# llama_max_devices() is 16, and --tensor-split refuses 16 numbers (common/arg.cpp): 15 devices, so 15 workers at most.
MAX_SPLIT_DEVICES: Final = 15
MAX_WORKERS: Final = 15
HEADROOM_PERCENT: Final = 10  # of free memory, left to what else runs there
MIN_SHARD_NODES: Final = 2

# ---------------------------------------------------------------- what a node publishes

MAX_DEVICES_OF_A_NODE: Final = 16  # ggml's own limit (GGML_RPC_MAX_SERVERS, llama_max_devices)
MAX_PUBLISHED_RTTS: Final = 64  # the nearest peers
MAX_PUBLISHED_FILES: Final = 64  # as many as models (presence.MAX_MODELS)
FREE_STEP_BYTES: Final = 256 * MIB  # smaller changes are not published: each change makes the mesh plan
FREE_STEPS: Final = 64  # so many make a small memory's whole
MIN_FREE_STEP_BYTES: Final = 1 * MIB

# ---------------------------------------------------------------- contexts

MAX_SPLIT_CONTEXT_TOKENS: Final = 32 * KIB  # chosen automatically; 64k chosen by others ran out of memory
MIN_SPLIT_CONTEXT_TOKENS: Final = 4 * KIB

# ---------------------------------------------------------------- planning again

DEBOUNCE_MS: Final = 3 * SECOND_MS  # after the last change
MAX_DEBOUNCE_MS: Final = 15 * SECOND_MS  # after the first, however many follow
RESTART_MS: Final = 1 * SECOND_MS  # after what was ready has ended unasked: by then it is mostly known who is gone
CLAIM_WAIT_MS: Final = 1 * SECOND_MS  # a claim's way through the mesh takes some 100 ms
VOLUNTARY_MS: Final = 60 * SECOND_MS  # a better plan has stood for so long before a running split is changed for it
SHARD_LOSS_MS: Final = 5 * MINUTE_MS  # a machine that starts anew is back; other shards cost gigabytes of writing
SHARD_TURN_MS: Final = 10 * SECOND_MS  # between two nodes that change their shards; presence takes a second or two
BACKOFF_MS: Final = 3 * SECOND_MS  # before a start that failed is tried again; it doubles
MAX_BACKOFF_MS: Final = 5 * MINUTE_MS
SILENT_MS: Final = MINUTE_MS  # for who is host by the plan to claim it; debounce and claim take 16 s at most
TOLERATED_FAILURES: Final = 1  # of a worker: one is bad luck, or its RPC server was killed
DOUBT_MS: Final = 2 * MINUTE_MS  # that plans do without a node that failed; it doubles
MAX_DOUBT_MS: Final = 60 * MINUTE_MS
HOST_DOUBT_MS: Final = 60 * MINUTE_MS  # of a host that did not begin: others may have stopped for it; doubles
MAX_HOST_DOUBT_MS: Final = 24 * 60 * MINUTE_MS
MAX_DOUBTED: Final = 64
MAX_TERM: Final = 1 << 40  # one a millisecond lasts for 34 years; higher ones are somebody's mischief

# ---------------------------------------------------------------- drafts

DRAFT_MAX_TOKENS: Final = 8  # --draft-max, by default
MAX_DRAFT_TOKENS: Final = 64  # longer ones are rejected by the first wrong token long before their end

# ---------------------------------------------------------------- estimates

ADVICE_RATIO: Final = 1.2  # another way is named when it is about so many times as fast
CPU_BYTES_PER_S: Final = 50_000_000_000  # guess: two channels of DDR5 reach some 60 GB/s
DEVICE_BYTES_PER_S: Final = 300_000_000_000  # guess: between an integrated GPU (100 GB/s) and a large one (1,000 GB/s)
