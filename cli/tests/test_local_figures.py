"""Rates and quantiles between two metrics pages, and troubles from /readyz."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from trine_cli.local.figures import Sample, look, quantile, series_of, words
from trine_cli.local.ports import HOST, free_port


class Gateway:
    """Metrics as the gateway's, on a page."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["source", "verdict"]
        self.decisions = Counter("trine_gateway_decisions_total", "-", labels, registry=self.registry)
        buckets = (0.01, 0.02, 0.1)
        self.seconds = Histogram("trine_gateway_decision_seconds", "-", registry=self.registry, buckets=buckets)
        self.spool = Gauge("trine_gateway_spool_bytes", "-", registry=self.registry)

    def decide(self, count: int, source: str, seconds: float) -> None:
        self.decisions.labels(source, "approve").inc(count)
        for _ in range(count):
            self.seconds.observe(seconds)

    def sample(self, at_s: float) -> Sample:
        return Sample(at_s, series_of(generate_latest(self.registry).decode()))


def test_gateway_rates_are_of_what_came_since() -> None:
    gateway = Gateway()
    gateway.decide(1000, "model", 0.5)
    before = gateway.sample(10.0)
    gateway.decide(294, "model", 0.005)
    gateway.decide(6, "rules", 0.015)
    gateway.spool.set(2_500_000)
    now = gateway.sample(12.0)
    assert words("gateway", before, now) == "150/s · model 98% · rules 2% · p99 ≤ 20 ms · spool 2.5 MB"
    assert quantile("trine_gateway_decision_seconds", 0.5, before, now) == 0.01


def test_quantile_is_unknown_without_observations_or_above_the_last_bucket() -> None:
    gateway = Gateway()
    before = gateway.sample(0.0)
    assert quantile("trine_gateway_decision_seconds", 0.99, before, gateway.sample(1.0)) is None
    gateway.decide(1, "model", 5.0)
    assert quantile("trine_gateway_decision_seconds", 0.99, before, gateway.sample(1.0)) is None


def test_a_restarted_process_counts_from_zero() -> None:
    old, new = Gateway(), Gateway()
    old.decide(500, "model", 0.005)
    new.decide(10, "model", 0.005)
    assert words("gateway", old.sample(0.0), new.sample(1.0)).startswith("10/s · model 100%")


def test_worker_lag_is_summed_over_shards() -> None:
    registry = CollectorRegistry()
    events = Counter("trine_worker_events_total", "-", ["source", "outcome"], registry=registry)
    lag = Gauge("trine_worker_shard_lag_events", "-", ["entity", "shard"], registry=registry)
    events.labels("transactions", "absorbed").inc(0)
    before = Sample(0.0, series_of(generate_latest(registry).decode()))
    events.labels("transactions", "absorbed").inc(4000)
    events.labels("transactions", "duplicate").inc(7)
    lag.labels("customer", "1").set(3)
    lag.labels("terminal", "1").set(4)
    assert words("worker", before, Sample(2.0, series_of(generate_latest(registry).decode()))) == (
        "2,000 events/s · lag 7 events"
    )


def test_what_does_not_answer_is_a_trouble() -> None:
    sample = look(f"http://{HOST}:{free_port()}")
    assert sample.troubles == ("does not answer: ConnectError",)
    assert words("gateway", sample, sample) == ""
