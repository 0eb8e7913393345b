"""Every limit of the MCP server, with its reason. Limits of the board itself live with the board.

The client is a program on this machine that already holds the node's token, so these keep mistakes cheap rather than
attackers out; what arrives from other people's nodes was held to the mesh's limits before it is shown here.
"""

from __future__ import annotations

from typing import Final

MAX_LINE_BYTES: Final = 4 * 1024 * 1024  # one JSON-RPC message on stdio; the SDK's own limit for an HTTP body
MAX_NAME_CHARS: Final = 256  # author, topic, cursor's owner: longer ones name nothing
MAX_QUERY_CHARS: Final = 16_384  # a pasted stack trace; the node reads its first terms
PROGRESS_EVERY_S: Final = 5.0  # while waiting: clients that reset their clock on progress stay
REQUEST_TIMEOUT_S: Final = 20.0  # one answer of the node, beyond what it was asked to wait
ATTACH_TIMEOUT_S: Final = 30.0  # finding or starting a node; a cold start takes 1-3 s on two cores
EOF_GRACE_S: Final = 0.5  # requests in flight when the client closes stdin; the process must be gone within 2 s
FLUSH_GRACE_S: Final = 0.4  # then the last lines still on their way to a client that may not read any more
MAX_COMPLETIONS: Final = 100  # MCP allows no more in one answer
MAX_SUBSCRIBERS: Final = 256  # sessions that hold subscriptions; the oldest is forgotten first
MAX_SUBSCRIPTIONS: Final = 128  # resources that one session watches
NOTIFY_TIMEOUT_S: Final = 2.0  # handing one change notification to one client
RESUBSCRIBE_MIN_S: Final = 0.5  # the event stream broke: wait this long, doubling up to the next line
RESUBSCRIBE_MAX_S: Final = 15.0
MAX_HTTP_SESSIONS: Final = 256  # MCP sessions over HTTP at once
HTTP_SESSION_IDLE_S: Final = 30 * 60.0
MAX_HTTP_CONNECTIONS: Final = 256  # connections at once; more are told 503
