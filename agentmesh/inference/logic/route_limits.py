"""Bounds of routing: queues, waits, breakers, what is kept of peers. Each with its reason."""

from __future__ import annotations

from typing import Final

# ------------------------------------------------------------------ places at a target

# llama-server queues by itself, without a bound: one more than its slots hides the way between proxy and engine, and a
# quarter of the slots does so for many. More would be a queue that nobody can leave for another node.
EXTRA_IN_FLIGHT: Final = 1
EXTRA_PER_SLOTS: Final = 4

# ------------------------------------------------------------------ waiting

MAX_WAITING_PER_MODEL: Final = 256  # requests; the next one is told 429
MAX_WAITING: Final = 1024  # requests, all models together
MAX_WAIT_S: Final = 120.0  # in a queue; clients give up at 60 to 600 s
MAX_NOBODY_WAIT_S: Final = 5.0  # while all hosts of a model are away: a moment's suspicion must not empty the queue
TICK_S: Final = 0.25  # how late a time-out, the end of a back-off or a peer's return is noticed by who waits

# ------------------------------------------------------------------ breakers

FAILURES_TO_OPEN: Final = 3  # answers of 5xx in a row: llama-server gives 500 for some mistakes of clients too
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0  # one request in so long is spent on finding out
FORGET_FAILURES_S: Final = 30.0  # a failure so long ago says nothing about now

# ------------------------------------------------------------------ what targets say

BUSY_DEFAULT_S: Final = 0.25  # a peer that is busy and does not say how long
BUSY_MAX_S: Final = 5.0  # a peer cannot put itself out of use for longer with Retry-After
RETRY_AFTER_MAX_S: Final = 30  # what clients are told at most
RETRY_LOADING_S: Final = 5
RETRY_AWAY_S: Final = 5
RETRY_WAITING_S: Final = 30  # for memory or nodes, which somebody has to add

# ------------------------------------------------------------------ what is kept of peers

MAX_SERVING_NODES: Final = 4096  # nodes whose offers are kept
MAX_TARGETS: Final = 16_384  # models of peers, all nodes together
MAX_CONSIDERED: Final = 64  # hosts of one model that one decision compares: bounds its cost
MAX_SHARD_HOSTS: Final = (
    64  # hosts of parts of one model that a session may be put on: as many as a plan has (moe.MAX_NODES)
)
MAX_SAME_NAME: Final = 16  # models that share an alias
MAX_LISTED_NAMES: Final = 30  # in one sentence
