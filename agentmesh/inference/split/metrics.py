"""What splits add to /metrics: requests, round trips and bytes of RPC, by model, peer and command, of both roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agentmesh.inference.rpc.counters import CommandCount


@dataclass(frozen=True, slots=True)
class Relayed:
    """One relay: this node's side of one worker's, or one host's, RPC. `role`: host or worker."""

    role: str
    model: str
    peer: str
    counts: Mapping[str, CommandCount]
    referenced_bytes: int
    overdue_s: float


def split_families(relays: Iterable[Relayed]) -> Iterable[Metric]:
    """As prometheus-client's families. They begin anew with each run of a model."""
    names = ["role", "model", "peer"]
    requests = CounterMetricFamily("agentmesh_rpc_requests", "RPC requests.", labels=[*names, "command"])
    trips = CounterMetricFamily("agentmesh_rpc_round_trips", "Of those, waited for.", labels=[*names, "command"])
    sizes = CounterMetricFamily("agentmesh_rpc_bytes", "Bytes of RPC.", labels=[*names, "command", "way"])
    spared = CounterMetricFamily("agentmesh_rpc_referenced_bytes", "Weights that did not travel.", labels=names)
    overdue = GaugeMetricFamily("agentmesh_rpc_overdue_seconds", "Age of the oldest unanswered request.", labels=names)
    for relay in relays:
        labels = [relay.role, relay.model, relay.peer]
        for command, count in relay.counts.items():
            requests.add_metric([*labels, command], count.requests)
            trips.add_metric([*labels, command], count.round_trips)
            on_the_mesh = (
                count.out_bytes if relay.role == "host" else count.in_bytes
            )  # an exit's way on is this machine's own
            sizes.add_metric([*labels, command, "out"], on_the_mesh)
            sizes.add_metric([*labels, command, "reply"], count.reply_bytes)
        spared.add_metric(labels, relay.referenced_bytes)
        overdue.add_metric(labels, relay.overdue_s)
    return (requests, trips, sizes, spared, overdue)
