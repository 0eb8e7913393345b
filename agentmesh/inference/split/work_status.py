"""One job of a worker, as status and /metrics show it."""

from __future__ import annotations

from dataclasses import dataclass

from agentmesh.inference.rpc.counters import RelayCounters
from agentmesh.inference.split.worker_job import WorkerJob, WorkState


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """One job, for people and for /metrics.

    Attributes:
        model: as its host calls it; content: its files (split_offer.content_of).
        host: the node, in hex.
        devices, held_bytes: of the plan's shares; held: with those of each device, "" is the machine's memory.
        same_files: weights need not travel.
        confinement: of the RPC server; begins with "none" where there is none.
        counters: of the relay, while it serves.
    """

    model: str
    content: str
    host: str
    term: int
    state: WorkState
    sentence: str
    pid: int | None
    port: int | None
    devices: tuple[str, ...]
    held: tuple[tuple[str, int], ...]
    held_bytes: int
    same_files: bool
    confinement: str
    counters: RelayCounters | None


def status_of(job: WorkerJob) -> WorkStatus:
    server, relay = job.server, job.rpc_job
    return WorkStatus(
        model=job.model,
        content=job.ask.content,
        host=job.job.host.hex(),
        term=job.ask.term,
        state=job.state,
        sentence=job.sentence,
        pid=server.pid if server is not None else None,
        port=server.port if server is not None else None,
        devices=tuple(device for device, _ in job.ask.needs),
        held=job.held,
        held_bytes=sum(need for _, need in job.held),
        same_files=relay is not None and relay.weights is not None,
        confinement=server.confinement if server is not None else "",
        counters=relay.counters if relay is not None else None,
    )
