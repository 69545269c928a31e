"""Values that the schema or a guard refuses, with words that say what would be right; and some that are taken."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from charts.readme_table import table, undescribed, with_table
from charts.tests.rendered import CHART, Chart, HelmRefused


def nested(path: str, value: object) -> dict[str, Any]:
    """`a.b` and 1 → {"a": {"b": 1}}; a name with dots in it is written with `/` for them."""
    for name in reversed(path.split(".")):
        value = {name.replace("/", "."): value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.tag", "2026-11-30.1"),
        ("global.imageRegistry", "registry.example.com:5000/team"),
        ("releases.release", "fraud-0123456789ab"),
        ("gateway.resources.requests.cpu", 2),
        ("gateway.resources.limits", {"memory": "1.5Gi", "nvidia.com/gpu": 1}),
        ("gateway.service.grpcNodePort", None),
        ("redis.embedded.maxmemory", "12gb"),
        ("kafka.embedded.image", "apache/kafka:4.1.0@sha256:" + "0" * 64),
        ("batch.jobs.my-own", {"enabled": True, "module": "shop.batch_clicks", "schedule": "@daily"}),
        ("batch.cutoff", "2018-08-08"),
        ("gateway.pod.maxUnavailable", "25%"),
    ],
)
def test_the_schema_takes(path: str, value: object) -> None:
    Chart(nested(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gatway", {}),
        ("gateway.replica", 2),
        ("gateway.replicas", "two"),
        ("gateway.replicas", -1),
        ("gateway.autoscaling.mode", "keda"),
        ("worker.features.autoscaling.mode", "hpa"),
        ("gateway.settings", {"TRINE_WORKER_BATCH_ROWS": "1"}),
        ("gateway.settings", {"deadlineMs": "80"}),
        ("gateway.service.grpcNodePort", 80),
        ("gateway.pod.spread", "Never"),
        ("image.pullPolicy", "Sometimes"),
        ("image.tag", "a:b"),
        ("shards", 0),
        ("shards", 5000),
        ("releases.release", "fraud"),
        ("redis.external.url", "redis://:secret@redis.example.com:6379/0"),
        ("redis.embedded.maxmemory", "512Mi"),
        ("redis.embedded.image", "redis"),
        ("kafka.embedded.clusterId", "too-short"),
        ("kafka.external.bootstrapServers", "kafka"),
        ("kafka.external.securityProtocol", "TLS"),
        ("kafka.external.sasl.mechanism", "GSSAPI"),
        ("batch.executor.memory", "512Mi"),
        ("batch.jobs.Card_Risk", {"enabled": False}),
        ("batch.jobs.card-risk.schedule", "at night"),
        ("batch.jobs.card-risk.cron", "0 0 * * *"),
        ("warehouse.uri", "/data"),
        ("warehouse.persistence.accessModes", []),
        ("networkPolicy.gatewayFrom", [{}]),
        ("networkPolicy.dns", []),
        ("ingress.port", "https"),
        ("prometheus.embedded.retention", "two days"),
    ],
)
def test_the_schema_refuses(path: str, value: object) -> None:
    with pytest.raises(HelmRefused, match="values don't meet the specifications of the schema"):
        Chart(nested(path, value))


NO_REDIS = {"embedded": {"enabled": False}}
EXTERNAL_KAFKA = {"bootstrapServers": "kafka.example.com:9093"}

GUARDS: list[tuple[str, dict[str, Any], str]] = [
    ("two Redis", {"redis": {"external": {"url": "redis://r:6379/0"}}}, "redis: embedded.enabled is true"),
    ("no Redis", {"redis": NO_REDIS}, "redis.external needs url"),
    (
        "two URLs of Redis",
        {"redis": {**NO_REDIS, "external": {"url": "redis://r:6379/0", "existingSecret": "s"}}},
        "url and existingSecret are both given",
    ),
    ("two Kafka", {"kafka": {"external": EXTERNAL_KAFKA}}, "kafka: embedded.enabled is true"),
    ("no Kafka", {"kafka": {"embedded": {"enabled": False}}}, "needs HOST:PORT of the brokers"),
    (
        "SASL without a user",
        {"kafka": {"embedded": {"enabled": False}, "external": {**EXTERNAL_KAFKA, "securityProtocol": "SASL_SSL"}}},
        "SASL_SSL needs sasl.existingSecret",
    ),
    (
        "a user without SASL",
        {"kafka": {"embedded": {"enabled": False}, "external": {**EXTERNAL_KAFKA, "sasl": {"existingSecret": "s"}}}},
        "must be SASL_PLAINTEXT or SASL_SSL, found PLAINTEXT",
    ),
    (
        "certificates without TLS",
        {"kafka": {"embedded": {"enabled": False}, "external": {**EXTERNAL_KAFKA, "tls": {"existingSecret": "s"}}}},
        "must be SSL or SASL_SSL, found PLAINTEXT",
    ),
    (
        "a client's certificate from nowhere",
        {"kafka": {"embedded": {"enabled": False}, "external": {**EXTERNAL_KAFKA, "tls": {"clientCertificate": True}}}},
        "clientCertificate needs existingSecret",
    ),
    ("copies on one broker", {"kafka": {"topics": {"replicationFactor": 3}}}, "3 copies, and kafka.embedded is one"),
    (
        "fewest above most",
        {"gateway": {"autoscaling": {"mode": "hpa", "minReplicas": 5, "maxReplicas": 2}}},
        "gateway.autoscaling: minReplicas 5 is more than maxReplicas 2",
    ),
    (
        "a percentage of nothing",
        {"torchserve": {"autoscaling": {"mode": "hpa"}, "resources": {"requests": {"cpu": None}}}},
        "torchserve.autoscaling.mode hpa: resources.requests.cpu",
    ),
    ("more workers than shards", {"shards": 4, "worker": {"features": {"replicas": 5}}}, "5 pods would share 4 shards"),
    (
        "more workers than shards, by KEDA",
        {"shards": 2, "worker": {"features": {"autoscaling": {"mode": "keda"}}}},
        "4 pods would share 2 shards",
    ),
    (
        "a grace shorter than the drain",
        {"gateway": {"drainNoticeSeconds": 30, "terminationGracePeriodSeconds": 35}},
        "leaves less than 10 s to drain",
    ),
    (
        "a grace shorter than Kafka's restart may take",
        {"gateway": {"terminationGracePeriodSeconds": 120}},
        "is over before drainNoticeSeconds 35 and spool.drainSeconds 120 are",
    ),
    (
        "two warehouses",
        {"warehouse": {"uri": "s3://b/t", "persistence": {"existingClaim": "c"}}},
        "uri and persistence.existingClaim are both given",
    ),
    ("credentials for a volume", {"warehouse": {"existingSecret": "s"}}, "only an object store"),
    ("archivers that share no volume", {"worker": {"archive": {"replicas": 2}}}, "need a warehouse that they share"),
    ("a long name", {"fullnameOverride": "t" * 10, **nested("batch.jobs." + "j" * 39, {})}, "longer than 52"),
    ("a job without module", nested("batch.jobs.mine", {"enabled": True, "schedule": "@daily"}), "mine: needs module"),
    ("a job without a schedule", nested("batch.jobs.mine", {"enabled": True, "module": "m"}), "mine: needs schedule"),
    ("an Ingress for no host", {"ingress": {"enabled": True}}, "ingress: needs hosts"),
    ("a route from nowhere", {"gatewayRoute": {"enabled": True}}, "gatewayRoute: needs parentRefs"),
    *(
        (f"{where}: the chart's own", nested(f"{where}.settings", {name: "x"}), f"settings: {name} is set by the chart")
        for where, name in (
            ("gateway", "TRINE_GATEWAY_REDIS_URL"),
            ("gateway", "TRINE_GATEWAY_KAFKA_BOOTSTRAP"),
            ("torchserve", "TRINE_REGISTRAR_MANAGEMENT"),
            ("worker.features", "TRINE_WORKER_ROLE"),
            ("worker.archive", "TRINE_WORKER_WAREHOUSE"),
            ("featureStore", "TRINE_FEATURES_SHARDS"),
            ("batch", "TRINE_BATCH_MASTER"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "said"), [(v, s) for _, v, s in GUARDS], ids=[name for name, _, _ in GUARDS])
def test_a_guard_refuses(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmRefused, match=re.escape(said)):
        Chart(values)


def test_every_guard_has_its_test() -> None:
    """Every text of `fail` begins like one that a case above waits for."""
    texts = re.findall(r'fail \(?(?:printf )?"([^"]*)"', (CHART / "templates" / "guards.yaml").read_text())
    patterns = [re.compile(".*".join(re.escape(part) for part in re.split(r"%[sdq]", text))) for text in texts]
    seen: set[str] = set()
    for _, values, _ in GUARDS:
        with pytest.raises(HelmRefused) as caught:
            Chart(values)
        seen |= {pattern.pattern for pattern in patterns if pattern.search(str(caught.value))}
    assert [pattern.pattern for pattern in patterns if pattern.pattern not in seen] == []


def test_the_schema_closes_every_object() -> None:
    """Only maps of the user's own names may have names that the schema does not list."""

    def open_ones(schema: object, path: str = "") -> list[str]:
        if isinstance(schema, list):
            return [found for i, one in enumerate(schema) for found in open_ones(one, f"{path}/{i}")]
        if not isinstance(schema, dict):
            return []
        found = [one for name, part in schema.items() for one in open_ones(part, f"{path}/{name}")]
        if "properties" in schema and schema.get("additionalProperties") is not False:
            found.append(path)
        return found

    assert open_ones(json.loads((CHART / "values.schema.json").read_text())) == []


def test_every_value_is_described_and_the_readme_says_so() -> None:
    values = (CHART / "values.yaml").read_text()
    assert undescribed(values) == []
    readme = (CHART / "README.md").read_text()
    assert with_table(readme, values) == readme, "python charts/readme_table.py"


def test_a_table_from_comments() -> None:
    text = "a:\n  # -- what | b is\n  b: {c: 1}\n  d: 2\n# -- top\ne: []\n"
    assert table(text).splitlines()[2:] == ['| `a.b` | `{"c": 1}` | what \\| b is |', "| `e` | `[]` | top |"]
    assert undescribed(text) == ["a.d"]
