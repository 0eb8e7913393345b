"""The API's counters."""

from __future__ import annotations

import time

from prometheus_client.parser import text_string_to_metric_families

from agentmesh.inference.proxy.metrics import MAX_CODES, MAX_MODEL_LABELS, Gauges, Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, tuple(sorted(labels.items()))]


def test_requests_are_counted_by_model_route_and_class() -> None:
    metrics = Metrics()
    for status in (200, 200, 404, 503, 499, 0, 700):
        metrics.request_began("a", "local")
        metrics.request_ended("a", "local", status, 0.3)
    metrics.request_began("a", "peer")
    assert _value(metrics, "agentmesh_requests_total", model="a", route="local", status="2xx") == 2
    assert _value(metrics, "agentmesh_requests_total", model="a", route="local", status="4xx") == 2
    assert _value(metrics, "agentmesh_requests_total", model="a", route="local", status="5xx") == 1
    assert _value(metrics, "agentmesh_requests_total", model="a", route="local", status="other") == 2
    assert _value(metrics, "agentmesh_requests_in_flight", model="a", route="local") == 0
    assert _value(metrics, "agentmesh_requests_in_flight", model="a", route="peer") == 1
    assert metrics.in_flight() == 1


def test_times_fall_into_cumulative_buckets() -> None:
    metrics = Metrics()
    for seconds in (0.01, 0.02, 9999.0):
        metrics.first_byte("a", "local", seconds)
    labels = {"model": "a", "route": "local"}
    assert _value(metrics, "agentmesh_ttft_seconds_bucket", **labels, le="0.01") == 1
    assert _value(metrics, "agentmesh_ttft_seconds_bucket", **labels, le="0.025") == 2
    assert _value(metrics, "agentmesh_ttft_seconds_bucket", **labels, le="300.0") == 2
    assert _value(metrics, "agentmesh_ttft_seconds_bucket", **labels, le="+Inf") == 3
    assert _value(metrics, "agentmesh_ttft_seconds_count", **labels) == 3
    assert _value(metrics, "agentmesh_ttft_seconds_sum", **labels) == 9999.03


def test_decisions_failovers_refusals_and_bytes_are_counted() -> None:
    metrics = Metrics()
    metrics.routed("peer")
    metrics.failover()
    metrics.refused("queue_full")
    metrics.sent_to_peer(10)
    metrics.received_from_peer(5)
    assert _value(metrics, "agentmesh_route_decisions_total", route="peer") == 1
    assert _value(metrics, "agentmesh_failovers_total") == 1
    assert _value(metrics, "agentmesh_refused_total", code="queue_full") == 1
    assert _value(metrics, "agentmesh_peer_bytes_total", to="peer") == 10
    assert _value(metrics, "agentmesh_peer_bytes_total", to="here") == 5


def test_gauges_are_asked_for_when_read() -> None:
    metrics = Metrics()
    metrics.watch(lambda: Gauges({"a": 3}, {"open": 1}, {"a": 2}))
    assert _value(metrics, "agentmesh_queue_length", model="a") == 3
    assert _value(metrics, "agentmesh_breakers", state="open") == 1
    assert _value(metrics, "agentmesh_ready_targets", model="a") == 2


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(2 * MAX_MODEL_LABELS):
        metrics.request_began(f"model {number}", "peer")
        metrics.refused(f"code {number}")
    samples = _samples(metrics)
    assert sum(name == "agentmesh_requests_in_flight" for name, _ in samples) == MAX_MODEL_LABELS + 1
    assert sum(name == "agentmesh_refused_total" for name, _ in samples) == MAX_CODES + 1
    assert _value(metrics, "agentmesh_requests_in_flight", model="other", route="peer") == MAX_MODEL_LABELS
    metrics.request_ended("model 500", "peer", 200, 1.0)
    assert metrics.in_flight() == 2 * MAX_MODEL_LABELS - 1


def test_names_of_models_cannot_break_the_text() -> None:
    metrics = Metrics()
    name = 'a"} 1\nevil{x="\\'
    metrics.request_began(name, "peer")
    assert _value(metrics, "agentmesh_requests_in_flight", model=name, route="peer") == 1


def test_a_request_costs_microseconds() -> None:
    """Best of several rounds, as the machine may be busy; the bound is ten times what was measured."""
    metrics = Metrics()
    best_s = min(_round_s(metrics) for _ in range(10))
    assert best_s < 20e-6


def _round_s(metrics: Metrics, count: int = 200) -> float:
    began_s = time.perf_counter()
    for _ in range(count):
        metrics.routed("local")
        metrics.request_began("model", "local")
        metrics.first_byte("model", "local", 0.2)
        metrics.request_ended("model", "local", 200, 2.0)
    return (time.perf_counter() - began_s) / count
