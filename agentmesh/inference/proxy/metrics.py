"""What the API counts, and how Prometheus reads it.

Owns the counters. The hot path adds to plain numbers (prometheus-client's own counters cost some 1.5 us each, for their
locks); they become its metric families only when somebody reads. Labels are bounded: MAX_MODEL_LABELS names, then `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MAX_MODEL_LABELS: Final = 256  # names of models are the peers' to choose
MAX_CODES: Final = 32  # reasons of refusals are this program's own words
OTHER: Final = "other"
# Prefill takes from milliseconds (cached) to minutes (long prompts on a CPU); an answer up to an hour.
TTFT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
DURATION_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_CLASSES: Final = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")


class _Histogram:
    """Counts by bucket; one more for what is beyond the last bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        """As prometheus-client wants them: (upper bound, how many up to it)."""
        so_far, out = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            out.append((bound, so_far))
        return out


class _Series:
    """The numbers of one model over one route."""

    __slots__ = ("began", "duration", "ended", "ttft")

    def __init__(self) -> None:
        self.began = 0
        self.ended = [0] * len(_CLASSES)
        self.ttft = _Histogram(TTFT_BUCKETS_S)
        self.duration = _Histogram(DURATION_BUCKETS_S)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is so at the moment of reading.

    Attributes:
        waiting: requests in each model's queue.
        breakers: targets by the state of their breaker (closed, open, half_open).
        ready_targets: how many can answer for each model, by model.
    """

    waiting: Mapping[str, int] = field(default_factory=dict[str, int])
    breakers: Mapping[str, int] = field(default_factory=dict[str, int])
    ready_targets: Mapping[str, int] = field(default_factory=dict[str, int])


class Metrics:
    """See the module. `route` is `local` or `peer`. Every method is a few additions and never fails."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], _Series] = {}
        self._labels: dict[str, str] = {}
        self._decisions: dict[str, int] = {"local": 0, "peer": 0, "queued": 0}
        self._refused: dict[str, int] = {}
        self._failovers = 0
        self._to_peers_bytes = 0
        self._from_peers_bytes = 0
        self._gauges: Callable[[], Gauges] = Gauges
        self._more: list[Callable[[], Iterable[Metric]]] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Reader(self))

    # ------------------------------------------------------------------ the hot path

    def request_began(self, model: str, route: str) -> None:
        """A request was given to a target. `model` is the target's id, never what the client wrote."""
        (self._series.get((model, route)) or self._new(model, route)).began += 1

    def first_byte(self, model: str, route: str, seconds: float) -> None:
        """Its answer began, so long after the request was whole."""
        ttft = (self._series.get((model, route)) or self._new(model, route)).ttft
        ttft.counts[bisect_left(TTFT_BUCKETS_S, seconds)] += 1
        ttft.total += seconds

    def request_ended(self, model: str, route: str, status: int, seconds: float) -> None:
        """It ended, with the status that the client saw (499 when the client left). Exactly once for each that began."""
        series = self._series.get((model, route)) or self._new(model, route)
        series.ended[status // 100 if 100 <= status < 600 else 0] += 1
        duration = series.duration
        duration.counts[bisect_left(DURATION_BUCKETS_S, seconds)] += 1
        duration.total += seconds

    def routed(self, route: str) -> None:
        """A decision: `local`, `peer`, or `queued` for one that had to wait first."""
        self._decisions[route] += 1

    def failover(self) -> None:
        """A request was tried at another target."""
        self._failovers += 1

    def refused(self, code: str) -> None:
        """No target was asked; `code` as in the error body."""
        if code not in self._refused and len(self._refused) >= MAX_CODES:
            code = OTHER
        self._refused[code] = self._refused.get(code, 0) + 1

    def sent_to_peer(self, size_bytes: int) -> None:
        """Bytes given to streams to peers, in either role."""
        self._to_peers_bytes += size_bytes

    def received_from_peer(self, size_bytes: int) -> None:
        """Bytes taken from streams of peers, in either role."""
        self._from_peers_bytes += size_bytes

    def _new(self, model: str, route: str) -> _Series:
        """Beyond the limit, names share one series; the lookups above then miss and come here, which stays cheap."""
        if model not in self._labels and len(self._labels) >= MAX_MODEL_LABELS:
            model = OTHER
        self._labels[model] = model
        return self._series.setdefault((model, route), _Series())

    # ------------------------------------------------------------------ reading

    def watch(self, gauges: Callable[[], Gauges]) -> None:
        """Ask this for what is so at the moment of reading."""
        self._gauges = gauges

    def also(self, families: Callable[[], Iterable[Metric]]) -> None:
        """Tell these, too."""
        self._more.append(families)

    def in_flight(self) -> int:
        """Requests that began and did not end."""
        return sum(series.began - sum(series.ended) for series in self._series.values())

    def render(self) -> bytes:
        """Everything, in Prometheus's text format 0.0.4."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        """Everything, as prometheus-client's families."""
        yield from self._request_families()
        decisions = CounterMetricFamily("agentmesh_route_decisions", "Where requests were sent.", labels=["route"])
        for route, count in self._decisions.items():
            decisions.add_metric([route], count)
        refused = CounterMetricFamily("agentmesh_refused", "Requests that no target was asked for.", labels=["code"])
        for code, count in self._refused.items():
            refused.add_metric([code], count)
        yield decisions
        yield refused
        yield CounterMetricFamily(
            "agentmesh_failovers", "Requests tried at another target after one failed.", value=self._failovers
        )
        relayed = CounterMetricFamily(
            "agentmesh_peer_bytes", "Bytes of requests and answers over the mesh.", labels=["to"]
        )
        relayed.add_metric(["peer"], self._to_peers_bytes)
        relayed.add_metric(["here"], self._from_peers_bytes)
        yield relayed
        yield from self._gauge_families()
        for more in self._more:
            yield from more()

    def _request_families(self) -> Iterable[Metric]:
        names = ["model", "route"]
        ended = CounterMetricFamily("agentmesh_requests", "Requests that ended.", labels=[*names, "status"])
        flying = GaugeMetricFamily("agentmesh_requests_in_flight", "Requests that did not end yet.", labels=names)
        ttft = HistogramMetricFamily(
            "agentmesh_ttft_seconds", "From the whole request to the first byte of its answer.", labels=names
        )
        duration = HistogramMetricFamily(
            "agentmesh_request_seconds", "From the whole request to the end of its answer.", labels=names
        )
        for (model, route), series in self._series.items():
            labels = [model, route]
            for status, count in zip(_CLASSES, series.ended, strict=True):
                if count:
                    ended.add_metric([*labels, status], count)
            flying.add_metric(labels, series.began - sum(series.ended))
            ttft.add_metric(labels, series.ttft.cumulative(), series.ttft.total)
            duration.add_metric(labels, series.duration.cumulative(), series.duration.total)
        return (ended, flying, ttft, duration)

    def _gauge_families(self) -> Iterable[Metric]:
        now = self._gauges()
        for name, text, label, values in (
            ("agentmesh_queue_length", "Requests that wait for room, by model.", "model", now.waiting),
            ("agentmesh_breakers", "Targets by the state of their breaker.", "state", now.breakers),
            ("agentmesh_ready_targets", "Targets that can answer now, by model.", "model", now.ready_targets),
        ):
            family = GaugeMetricFamily(name, text, labels=[label])
            for key, value in list(values.items())[:MAX_MODEL_LABELS]:
                family.add_metric([key], value)
            yield family


class _Reader(Collector):
    """prometheus-client's side."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()
