"""An upgrade from the committed package of an earlier version changes nothing that Kubernetes would not let change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charts.tests.rendered import CHART, Chart, Object

BASELINE = CHART.parents[1] / "k8s-tests" / "baseline" / "trine-0.1.0.tgz"
KEPT = {"persistence": {"enabled": True}}
VALUES: list[dict[str, Any]] = [
    {},
    {"gateway": {"spool": KEPT}, "prometheus": {"embedded": KEPT}},
    {"gateway": {"service": {"type": "NodePort"}}, "batch": {"jobs": {"churn": {"enabled": True}}}},
]  # fmt: skip


def unchangeable(one: Object) -> Iterator[tuple[str, object]]:
    """(what, its value) of an object's fields that an upgrade cannot change."""
    spec = one.get("spec", {})
    kind = one["kind"]
    if kind in ("Deployment", "StatefulSet"):
        yield "selector", spec["selector"]
    if kind == "StatefulSet":
        yield "serviceName", spec["serviceName"]
        yield "podManagementPolicy", spec.get("podManagementPolicy", "OrderedReady")
        yield "volumeClaimTemplates", spec.get("volumeClaimTemplates", [])
    if kind == "Service":
        yield "clusterIP", spec.get("clusterIP")
    if kind == "PersistentVolumeClaim":
        yield "spec", spec
    if kind == "RoleBinding":
        yield "roleRef", one["roleRef"]
    if kind == "Job":
        yield "template", spec["template"]


def named(chart: Chart) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in chart.objects}


@pytest.mark.parametrize("values", VALUES, ids=["defaults", "kept", "jobs"])
def test_nothing_unchangeable_changes(values: dict[str, Any]) -> None:
    before, after = named(Chart(values, chart=BASELINE)), named(Chart(values))
    for key, one in before.items():
        if key in after:
            assert dict(unchangeable(one)) == dict(unchangeable(after[key])), key


@pytest.mark.parametrize("values", VALUES, ids=["defaults", "kept", "jobs"])
def test_what_holds_data_and_what_is_called_by_name_stays(values: dict[str, Any]) -> None:
    """Another name would be another object: its data would be left behind, its callers would not find it."""
    before, after = named(Chart(values, chart=BASELINE)), named(Chart(values))
    kinds = ("Deployment", "StatefulSet", "Service", "PersistentVolumeClaim", "CronJob", "Secret", "ServiceAccount")
    assert {key for key in before if key[0] in kinds} - set(after) == set()
    claims = [key for key in after if key[0] == "StatefulSet"]
    assert claims
    kafka = after["StatefulSet", "trine-kafka"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "CLUSTER_ID", "value": "dHJpbmUta2Fma2EtMDAwMQ"} in kafka


def test_a_job_that_changes_gets_another_name() -> None:
    (first,) = Chart().names("Job")
    assert Chart().names("Job") == [first]
    (second,) = Chart({"image": {"tag": "another"}}).names("Job")
    assert first != second


def test_what_changes_in_a_configuration_rolls_its_pods() -> None:
    def checksum(name: str, values: dict[str, Any]) -> str:
        annotations: dict[str, str] = Chart(values).pod(name)["metadata"]["annotations"]
        return annotations["checksum/config"]

    redis: dict[str, Any] = {"redis": {"embedded": {"existingSecret": "mine", "maxmemory": "100mb"}}}
    fewer: dict[str, Any] = {"redis": {"embedded": {"existingSecret": "mine", "maxmemory": "200mb"}}}
    assert checksum("trine-redis", redis) == checksum("trine-redis", redis)
    assert checksum("trine-redis", redis) != checksum("trine-redis", fewer)
    quick = {"prometheus": {"embedded": {"scrapeIntervalSeconds": 1}}}
    assert checksum("trine-prometheus", {}) != checksum("trine-prometheus", quick)


def test_the_baseline_is_an_earlier_version() -> None:
    def version(chart: Path) -> str:
        labels: dict[str, str] = Chart(chart=chart).get("Service", "trine-gateway")["metadata"]["labels"]
        return labels["helm.sh/chart"]

    assert version(BASELINE) == "trine-0.1.0"
    assert version(CHART) != version(BASELINE)
