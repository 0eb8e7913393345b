"""What the proxy's data path asks of the parts around it. Implemented by dispatch.py, the node and the mesh; tests use fakes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from agentmesh.core.errors import AgentMeshError
from agentmesh.inference.logic.target import ServedModel, Target

TargetKey = tuple[bytes, str]


class Outcome(StrEnum):
    """How a request ended at one target."""

    ANSWERED = "answered"  # a whole answer below 500: also 4xx, which is the client's mistake
    FAILED = "failed"  # 5xx
    UNREACHABLE = "unreachable"  # no connection, time-out, or its end before the first byte
    BUSY = "busy"  # it said that it did not begin (429, or 503 while loading)
    BROKEN = "broken"  # it ended in the middle of an answer
    CANCELLED = "cancelled"  # the client left


class Wanted(msgspec.Struct, frozen=True, gc=False):  # a frozen dataclass takes ten times as long to make
    """What a request needs of a target.

    Attributes:
        model: as the client named it; `auto` included.
        path: the endpoint, e.g. `/v1/chat/completions`.
        needs: capabilities (of logic/target.Capability) that the body shows it needs; they matter to `auto`.
        body_bytes: of the request, for a rough estimate of its tokens.
        caller: whom it is for (fairness comes later): a key's digest, a peer's id, or "local".
        local_only: it came over the mesh and must not leave again.
        session: what its conversation is called (logic/session_key.py), where hosts are chosen by it; else empty.
    """

    model: str
    path: str
    needs: frozenset[str] = frozenset()
    body_bytes: int = 0
    caller: str = "local"
    local_only: bool = False
    session: bytes = b""


class Lease(Protocol):
    """One request's place at one target. Whoever holds it releases it exactly once; a second release does nothing."""

    @property
    def target(self) -> Target: ...

    def first_byte(self) -> None:
        """The answer began: for TTFT and the breaker."""
        ...

    def release(self, outcome: Outcome, *, retry_after_s: float | None = None) -> None: ...


class Refused(AgentMeshError):
    """The request cannot be answered now."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = code  # OpenAI's and Anthropic's error bodies are built from it
        self.retry_after_s = retry_after_s


class Dispatch(Protocol):
    """Chooses targets."""

    def try_acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> Lease | None:
        """A place at the best target that has room now, without waiting; None when one would have to wait.

        Raises:
            Refused: 404 unknown model (the message lists what there is); 503 known, but no host can answer now, or all
                were tried (`avoid`); 429 its queue is full.
        """
        ...

    async def acquire(self, wanted: Wanted, avoid: frozenset[TargetKey] = frozenset()) -> Lease:
        """As try_acquire, waiting in the model's bounded queue for room. Cancelling it leaves the queue.

        Raises:
            Refused: as try_acquire; also 503 when it waited too long.
        """
        ...

    def by_session(self, model: str) -> bool:
        """Whether conversations are kept on hosts of what this name means: then `Wanted.session` is to be set."""
        ...

    def models(self) -> Sequence[tuple[ServedModel, Sequence[bytes]]]:
        """Every model that is offered anywhere, once, with the nodes that offer it; ready ones first, then by id."""
        ...
