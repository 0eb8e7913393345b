"""Every limit of the blackboard, with its reason. Times in ms, sizes in bytes.

Owns the numbers of posts, search and feeds; the mesh's own are in agentmesh/mesh/logic/limits.py, the MCP server's in mcp_limits.py.
"""

from __future__ import annotations

from typing import Final

from agentmesh.core.units import KIB, MINUTE_MS, SECOND_MS
from agentmesh.mesh.logic.limits import POST_LIFETIME_MS

# ------------------------------------------------------------------ one post

MAX_POST_BYTES: Final = 4_096  # UTF-8, after scrubbing: a screenful or two; longer things belong in a file
MAX_RAW_POST_BYTES: Final = 16 * KIB  # before scrubbing: what the scrubber may be asked to read
MAX_AUTHOR_BYTES: Final = 64  # an author's name, as every name on the mesh
MAX_TOPIC_CHARS: Final = 128  # `org/repo`
MAX_BRANCH_CHARS: Final = 128
MAX_POST_PAYLOAD_BYTES: Final = 6 * KIB  # the text and every field at its limit, with room for fields of later versions
MAX_RETRACTION_PAYLOAD_BYTES: Final = 256
RETRACTION_LIFETIME_MS: Final = POST_LIFETIME_MS  # a retraction stands for its post and needs to live no longer
MAX_IDEMPOTENCY_KEY_CHARS: Final = 256
ANSWERS_KEPT_MS: Final = POST_LIFETIME_MS  # how long a repeated idempotency key gets its first answer

# ------------------------------------------------------------------ reading

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 20
MAX_WAIT_S: Final = 55  # long polls end before the 60 s at which MCP clients give up
MIN_ID_PREFIX: Final = 4  # hex characters of a short id; people use 8
MAX_RELATED: Final = 5  # posts pointed out to a poster
MAX_THREAD_POSTS: Final = 1_000
MAX_READER_CHARS: Final = 128
MAX_READERS: Final = 2_000  # unread positions kept, of the most recently used (reader, filter) pairs
MAX_UNREAD_RANGES: Final = 64  # gaps in what one reader has read; at the limit the oldest of the newest come first
MAX_CLAIM_PATHS: Final = 16  # paths of one claim that are compared
MAX_PATH_SEGMENTS: Final = 32
MAX_OPEN_CLAIMS: Final = 500  # newest open claims compared with a new one
MAX_NAMES: Final = 200  # topics or authors listed for completions

# ------------------------------------------------------------------ search

MAX_QUERY_CHARS: Final = 64 * KIB  # beyond it the query is refused; below, only its first terms count
MAX_QUERY_TERMS: Final = (
    8  # each term costs a walk through its postings: ten common ones took 14 ms of the 10 at 100,000 posts
)
MAX_ALL_TERMS: Final = 4  # terms that a post must hold in the first step of a search, the longest of them
MAX_TERM_CHARS: Final = 64  # FTS5's porter stems nothing longer either
RANKED_MATCHES: Final = 1_000  # newest matches that bm25 ranks: 2,000 took 8-12 ms for a new query of common words at 100,000 posts, all of them 35-1,400 ms
BM25_TERMS: Final = 2  # rarest terms that bm25 looks at; it walks through all postings of each
COMMON_HITS: Final = (
    250  # in the newest 1,000 posts; a word in more says nothing about a post, and bm25 weighs it next to nothing
)
SCORED_MATCHES: Final = (
    1_500  # newest posts with the rarest terms that get a score, 1 us each; older ones follow, newest first
)
ENOUGH_HITS: Final = 3  # fewer and the search is relaxed
MIN_PREFIX_CHARS: Final = 3
MAX_TRIGRAMS: Final = 10  # of one word
MAX_TRIGRAM_CANDIDATES: Final = 400  # posts whose text is compared with the term itself
LITERAL_SCAN_POSTS: Final = 500  # newest posts read for a query that has no word at all, such as `->`
SEARCH_BUDGET_MS: Final = 100  # then a search answers with what it has
RANKINGS_KEPT: Final = 64  # first pages whose ranking is kept, so that later pages cannot shift

# ------------------------------------------------------------------ the service

MAX_WRITE_QUEUE: Final = 4_096  # writes waiting for the disk; more are refused, not queued
MAX_READ_QUEUE: Final = 512  # reads waiting for a reader thread
GROUP_COMMIT_JOBS: Final = 256  # writes in one transaction
BUSY_TIMEOUT_MS: Final = 2 * SECOND_MS  # another process holding the database (a backup, a shell)
SCRUB_BATCH: Final = 64  # posts from peers scrubbed at a time
SHOWN_AT_ONCE: Final = (
    8  # of them shown in one write, 5 ms (noise of 4 KiB each: 40 ms), so that own posts come in between
)
MASKING_ATTEMPTS: Final = 4  # then a post that the scrubber cannot check stays without its text
MASKING_AGAIN_MS: Final = MINUTE_MS  # between attempts
SCRUB_RETRY_MS: Final = 2 * SECOND_MS  # the scrubber is not there: try again
MAX_CHECKED_NAMES: Final = 4_096  # names of authors, topics and branches whose check for secrets is remembered
MAX_AUTHOR_NAMES: Final = 10_000  # author names whose last minute is remembered
AUTHOR_WINDOW_MS: Final = MINUTE_MS
MAX_WAITERS: Final = 1_024  # long polls at once
MAX_SUBSCRIBERS: Final = 256  # event streams at once
SUBSCRIBER_QUEUE: Final = 1_024  # events waiting for one subscriber; a slower one is dropped and told so
RESUME_EVENTS: Final = 1_000  # missed events replayed to a subscriber that comes back
MAX_EVENT_ID_CHARS: Final = 18  # decimal digits that fit SQLite's integers
HEARTBEAT_S: Final = 15  # silence on an event stream, before a comment keeps it open
MAX_BODY_BYTES: Final = 64 * KIB  # of an HTTP request
MAX_SINCE_HOURS: Final = 24 * 365
QUICK_CHECK_BYTES: Final = 32 * 1024 * KIB  # a database up to this size is checked whole when opened (about 150 ms)
MAX_DAY_TOMBSTONES: Final = 50_000  # gone posts of one author and day that are remembered, 20 times the default quota
CORRUPT_KEPT: Final = 2  # damaged databases kept aside
