"""Every limit of the scrubber, with its reason. Sizes in bytes of UTF-8 unless the name says otherwise.

Owns the numbers of scrubbing only; those of posts and search are in limits.py.
"""

from __future__ import annotations

from typing import Final

MAX_RAW_TEXT_BYTES: Final = 16 * 1024  # four times the longest post, so that masking may shrink a text into the limit
MAX_REPLY_BYTES: Final = (
    256 * 1024
)  # a worker's answer: every 4 bytes of a 16 KiB text as a 40-byte placeholder, and the frame

MAX_JUDGED_CHARS: Final = 64 * 1024  # of values behind secret names in one text: four times the longest, some 20 ms
MAX_ROUNDS: Final = (
    8  # masking can uncover a new match beside a placeholder; 2 rounds are usual, 3 the most seen in tests
)
MOSTLY_SECRET_NUMERATOR: Final = 2  # two thirds of a post's characters were credentials: what is left says nothing
MOSTLY_SECRET_DENOMINATOR: Final = 3
LONGEST_SECRET_COUNTED_CHARS: Final = 64  # one long key beside a sentence must not make the post mostly secret
SHORTEST_SECRET_COUNTED_CHARS: Final = 8  # what a placeholder in an already masked text counts for

MIN_ENV_SECRET_CHARS: Final = 8  # shorter values occur in ordinary text by chance
MAX_ENV_SECRET_CHARS: Final = 8192  # longer than any post could hold in part or whole and still be read
MAX_ENV_SECRETS: Final = 256  # each costs one search of every text; 256 cost some 15 us at 500 bytes
MIN_NAME_CHARS: Final = 5  # user and host names shorter than this are words of ordinary text too often

TEXT_CPU_LIMIT_S: Final = 2.0  # of the worker's own processor time; the worst text of 16 KiB takes some 50 ms
TEXT_TIME_LIMIT_S: Final = (
    15.0  # on the wall: a machine with 20 busy nodes is slow, which is no fault of the text (seen: 2 s were not enough)
)
WORKER_ALARM_S: Final = 20.0  # the worker ends itself then, should the node that watches it be gone
START_LIMIT_S: Final = 30.0  # importing scrubadub takes 2-3 s on a quiet machine
STOP_LIMIT_S: Final = 2.0  # from the closing of its stdin until a worker is killed
SPARE_AFTER_S: Final = 5.0  # after its worker: starting both at once makes the first post wait for two imports
IDLE_S: Final = 300.0  # then the workers end and give back some 150 MB each
RETRY_START_AFTER_S: Final = 1.0  # a worker that cannot start is not tried again before this, doubling to the next
MAX_RETRY_START_AFTER_S: Final = 30.0
QUEUE_LIMIT: Final = 256  # texts waiting: a quarter of a second of work; more are refused, not queued
BULK_AT_ONCE: Final = 64  # texts of peers waiting at a time; the caller's own posts go first
PIPELINE: Final = 8  # texts sent ahead of their answers, so that the worker does not wait for the loop
WAIT_LIMIT_S: Final = 45.0  # a caller's whole wait: a start and a queue in front of it
