"""Metrics counted a batch at a time say the same as one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from inference_gateway.gateway_metrics import _observe_all
from prometheus_client import CollectorRegistry, Histogram, generate_latest

BUCKETS = (0.001, 0.01, 0.1, 1.0)


@given(st.lists(st.one_of(st.sampled_from(BUCKETS), st.integers(0, 5_000_000).map(lambda us: us / 1e6))))
def test_observing_all_at_once_is_observing_each(values: list[float]) -> None:
    pages = []
    for at_once in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("h", "h", registry=registry, buckets=BUCKETS)
        if at_once:
            _observe_all(histogram, values)
        else:
            for value in values:
                histogram.observe(value)
        page = generate_latest(registry).decode()
        pages.append([line for line in page.splitlines() if "_bucket" in line or "_count" in line])
    assert pages[0] == pages[1]
