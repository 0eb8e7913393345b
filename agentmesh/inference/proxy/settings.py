"""How the API listens and whom it answers, with every bound of the data path. The defaults and reasons are in logic/proxy_limits.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agentmesh.inference.logic import proxy_limits as limits


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Fixed while the server runs. Tests shorten the waits.

    Attributes:
        listen_all: the socket is reachable from other machines: a key is asked of everybody, and any Host may be named.
        api_keys: one of them is asked of every request; empty: none is asked, which is for loopback only.
        spill_folder: where big bodies wait, in files without a name; None: the system's temporary folder.
    """

    listen_all: bool = False
    api_keys: frozenset[str] = field(default_factory=frozenset[str], repr=False)
    spill_folder: Path | None = None
    max_body_bytes: int = limits.MAX_BODY_BYTES
    max_bodies_bytes: int = limits.MAX_BODIES_BYTES
    spill_bytes: int = limits.SPILL_BYTES
    max_connections: int = limits.MAX_CONNECTIONS
    max_peer_requests: int = limits.MAX_PEER_REQUESTS
    max_requests_of_a_peer: int = limits.MAX_REQUESTS_OF_A_PEER
    header_timeout_s: float = limits.HEADER_TIMEOUT_S
    body_idle_s: float = limits.BODY_IDLE_S
    body_total_s: float = limits.BODY_TOTAL_S
    keep_alive_s: float = limits.KEEP_ALIVE_S
    write_stall_s: float = limits.WRITE_STALL_S
    linger_s: float = limits.LINGER_S
    connect_s: float = limits.CONNECT_S
    peer_open_s: float = limits.PEER_OPEN_S
    first_byte_s: float = limits.FIRST_BYTE_S
    answer_idle_s: float = limits.ANSWER_IDLE_S
    engine_idle_s: float = limits.ENGINE_IDLE_S
    sweep_s: float = limits.SWEEP_S
