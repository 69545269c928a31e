"""Readiness and degradation with reasons, and the names of metrics."""

from __future__ import annotations

import pytest
from service_kit.health import Health
from service_kit.metrics import Metrics


def test_ready_only_when_nothing_blocks() -> None:
    metrics = Metrics("t")
    health = Health(metrics)
    seen: list[bool] = []
    health.listen(lambda report: seen.append(report.ready))
    assert health.report().not_ready == {"start": "starting"}
    health.unblock("start")
    health.degrade("model", "does not answer")
    assert health.ready
    assert health.report().degraded == {"model": "does not answer"}
    page = metrics.exposition().decode()
    assert "trine_t_ready_state 1.0" in page
    assert 'trine_t_degraded_state{part="model"} 1.0' in page
    health.restore("model")
    assert 'trine_t_degraded_state{part="model"} 0.0' in metrics.exposition().decode()
    health.block("redis", "gone")
    assert not health.ready
    health.unblock("redis")
    health.die("loop", "stuck")
    assert not health.report().live
    assert seen == [True, True, True, False, True, False]


@pytest.mark.parametrize("name", ["requests", "Requests_total", "latency_ms"])
def test_metric_without_unit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="should be lower case and end in one of"):
        Metrics("t").gauge(name, "…")
