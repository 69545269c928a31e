"""What the chart makes of several files of values: objects that Kubernetes takes, and what must hold for each."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from charts.tests.rendered import CHART, KUBERNETES, Chart, containers, environment

FILES = [(), ("production",), ("small",), ("kind",)]
OTHERS = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "GRPCRoute"}  # Kubernetes has no schema of them
every_file = pytest.mark.parametrize("files", FILES, ids=lambda files: "+".join(files) or "defaults")


@every_file
def test_helm_lints_it(files: tuple[str, ...]) -> None:
    values = [part for name in files for part in ("--values", str(CHART.parent / "tests" / "values" / f"{name}.yaml"))]
    run = subprocess.run(["helm", "lint", "--strict", str(CHART), *values], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@every_file
@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_would_take_every_object(files: tuple[str, ...], kubernetes: str) -> None:
    chart = Chart(files=files, kubernetes=kubernetes)
    for one in chart.objects:
        if one["kind"] not in OTHERS:
            kubernetes_validate.validate(one, kubernetes, strict=True)
    names = Counter((one["kind"], one["metadata"]["name"]) for one in chart.objects)
    assert [name for name, count in names.items() if count > 1] == []


@every_file
def test_pods_hold_to_the_restricted_standard(files: tuple[str, ...]) -> None:
    for name, pod in Chart(files=files).pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in containers(pod):
            where = f"{name}/{container['name']}"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
        allowed = {"emptyDir", "configMap", "secret", "persistentVolumeClaim", "name"}
        assert all(set(volume) <= allowed for volume in spec.get("volumes", [])), name


@every_file
def test_every_container_says_what_it_needs(files: tuple[str, ...]) -> None:
    for name, pod in Chart(files=files).pods():
        for container in containers(pod):
            if container["name"] == "executor":  # Spark says it
                continue
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), f"{name}/{container['name']}"
            assert "memory" in resources["limits"], f"{name}/{container['name']}"


@every_file
def test_images_have_a_tag_and_the_users_registry(files: tuple[str, ...]) -> None:
    registry = "registry.example.com/ml/" if "production" in files else ""
    for name, pod in Chart(files=files).pods():
        for container in containers(pod):
            if container["name"] == "executor":  # Spark says it
                continue
            image = container["image"]
            assert re.fullmatch(re.escape(registry) + r"[a-z0-9./-]+:[\w.-]+", image), f"{name}: {image}"
        if registry:
            assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}], name


@every_file
def test_only_sparks_driver_may_ask_the_api_server(files: tuple[str, ...]) -> None:
    chart = Chart(files=files)
    executors = "production" in files or not files
    for name, pod in chart.pods():
        driver = "-batch-" in name and not name.endswith("/executor")
        assert pod["spec"]["automountServiceAccountToken"] is (driver and executors), name
        assert pod["spec"]["enableServiceLinks"] is False, name
    assert len(chart.all("Role")) == len(chart.all("RoleBinding")) == int(executors)
    assert chart.all("ClusterRole", "ClusterRoleBinding") == []
    accounts = set(chart.names("ServiceAccount")) | {"default"}
    assert {pod["spec"].get("serviceAccountName", "default") for _, pod in chart.pods()} <= accounts


@every_file
def test_volumes_and_mounts_belong_together(files: tuple[str, ...]) -> None:
    chart = Chart(files=files)
    claims = {
        one["metadata"]["name"]: {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        for one in chart.all("StatefulSet")
    }
    for name, pod in chart.pods():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | claims.get(name, set())
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert mounted == volumes, name


@every_file
def test_selectors_find_their_pods(files: tuple[str, ...]) -> None:
    chart = Chart(files=files)
    labels = {name: pod["metadata"]["labels"] for name, pod in chart.pods()}
    for one in chart.all("Deployment", "StatefulSet"):
        name = one["metadata"]["name"]
        assert one["spec"]["selector"]["matchLabels"].items() <= labels[name].items(), name
    ports = {name: {p["name"] for c in containers(pod) for p in c.get("ports", [])} for name, pod in chart.pods()}
    for service in chart.all("Service"):
        selected = [name for name, found in labels.items() if service["spec"]["selector"].items() <= found.items()]
        assert selected, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert all(port["targetPort"] in ports[name] for name in selected), (service["metadata"]["name"], port)
    for budget in chart.all("PodDisruptionBudget"):
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= found.items() for found in labels.values())


def test_no_two_ports_or_variables_of_a_container_are_one() -> None:
    """Kubernetes merges ports by their number and variables by their name: an upgrade would lose one of two."""
    for name, pod in Chart().pods():
        for container in containers(pod):
            numbers = [port["containerPort"] for port in container.get("ports", [])]
            assert len(numbers) == len(set(numbers)), f"{name}/{container['name']}"
            variables = [variable["name"] for variable in container.get("env", [])]
            assert len(variables) == len(set(variables)), f"{name}/{container['name']}"


@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [("Deployment", "gateway", "gateway"), ("Deployment", "torchserve", "torchserve")],
)
def test_an_autoscaler_owns_the_replicas(kind: str, name: str, where: str) -> None:
    assert Chart().get(kind, f"trine-{name}")["spec"]["replicas"] == 1
    chart = Chart({where: {"autoscaling": {"mode": "hpa", "scaleUpPods": 3}}})
    assert "replicas" not in chart.get(kind, f"trine-{name}")["spec"]
    scaler = chart.get("HorizontalPodAutoscaler", f"trine-{name}")
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": kind, "name": f"trine-{name}"}
    assert scaler["spec"]["behavior"]["scaleUp"]["policies"] == [{"type": "Pods", "value": 3, "periodSeconds": 15}]


def test_keda_owns_the_workers_replicas() -> None:
    chart = Chart(files=("kind",))
    assert "replicas" not in chart.get("Deployment", "trine-worker")["spec"]
    (trigger,) = chart.get("ScaledObject", "trine-worker")["spec"]["triggers"]
    assert trigger["metadata"]["bootstrapServers"] == "trine-kafka.here.svc:9092"
    assert trigger["metadata"]["consumerGroup"] == "trine-features"
    assert trigger["metadata"]["lagThreshold"] == "500"
    chart = Chart(files=("production",))
    assert (
        chart.get("ScaledObject", "trine-worker")["spec"]["triggers"][0]["authenticationRef"]["name"] == "trine-worker"
    )
    told = {one["parameter"] for one in chart.get("TriggerAuthentication", "trine-worker")["spec"]["secretTargetRef"]}
    assert told == {"sasl", "tls", "username", "password", "ca", "cert", "key"}


def test_a_kept_spool_makes_the_gateway_a_stateful_set() -> None:
    assert Chart().all("StatefulSet")
    assert "trine-gateway" in Chart().names("Deployment")
    chart = Chart({"gateway": {"spool": {"persistence": {"enabled": True}}, "autoscaling": {"mode": "hpa"}}})
    gateway = chart.get("StatefulSet", "trine-gateway")
    assert gateway["spec"]["serviceName"] == "trine-gateway-headless"
    assert [claim["metadata"]["name"] for claim in gateway["spec"]["volumeClaimTemplates"]] == ["spool"]
    assert chart.get("HorizontalPodAutoscaler", "trine-gateway")["spec"]["scaleTargetRef"]["kind"] == "StatefulSet"


def test_the_drain_ends_before_the_grace() -> None:
    chart = Chart({"gateway": {"drainNoticeSeconds": 7}})
    gateway = chart.pod("trine-gateway")
    assert environment(gateway, "gateway")["TRINE_GATEWAY_DRAIN_NOTICE_S"] == "7"
    waited = float(environment(gateway, "gateway")["TRINE_GATEWAY_SPOOL_DRAIN_S"])
    # The sum of what else inference_gateway.main allows.
    assert gateway["spec"]["terminationGracePeriodSeconds"] >= 7 + waited + 61
    kept = Chart({"gateway": {"spool": {"persistence": {"enabled": True}}}}).pod("trine-gateway")
    assert "TRINE_GATEWAY_SPOOL_DRAIN_S" not in environment(kept, "gateway"), "its files wait for the next start"
    for container in chart.pod("trine-torchserve")["spec"]["containers"]:
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "10"]


def test_probes_are_the_services_own_health() -> None:
    for name in ("gateway", "worker", "archiver", "feature-store"):
        container = Chart().pod(f"trine-{name}")["spec"]["containers"][0]
        assert (
            container["startupProbe"]["httpGet"]
            == container["livenessProbe"]["httpGet"]
            == {"path": "/livez", "port": "http"}
        )
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    server, registrar = Chart().pod("trine-torchserve")["spec"]["containers"]
    assert server["livenessProbe"]["httpGet"]["path"] == "/ping"
    assert registrar["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_torchserves_management_is_in_no_port_and_no_service() -> None:
    chart = Chart()
    ports = {port["containerPort"] for c in chart.pod("trine-torchserve")["spec"]["containers"] for port in c["ports"]}
    assert ports == {7070, 8080, 8090}
    assert [port["port"] for port in chart.get("Service", "trine-torchserve")["spec"]["ports"]] == [7070]
    assert (
        environment(chart.pod("trine-torchserve"), "registrar")["TRINE_REGISTRAR_MANAGEMENT"] == "http://127.0.0.1:8081"
    )


def test_settings_become_variables_as_they_are() -> None:
    chart = Chart(
        {
            "worker": {
                "features": {"settings": {"TRINE_WORKER_BATCH_ROWS": 1000000, "TRINE_WORKER_STATIC_MEMBERSHIP": True}}
            }
        }
    )
    told = environment(chart.pod("trine-worker"), "worker")
    assert told["TRINE_WORKER_BATCH_ROWS"] == "1000000"
    assert told["TRINE_WORKER_STATIC_MEMBERSHIP"] == "true"


def test_cron_jobs() -> None:
    chart = Chart(files=("production",))
    assert chart.names("CronJob") == ["trine-batch-card-risk", "trine-batch-churn", "trine-rebuild"]
    spec = chart.get("CronJob", "trine-batch-churn")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert (spec["timeZone"], spec["suspend"]) == ("Europe/Berlin", True)
    assert spec["startingDeadlineSeconds"] == 3600
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)
    job = spec["jobTemplate"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["activeDeadlineSeconds"] == 14400
    retried = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert not {4, 75, 143} & set(retried)  # what may pass by itself (docs/batch.md)
    told = environment(job["template"], "driver")
    assert told["TRINE_BATCH_MASTER"].startswith("k8s://")
    assert told["TRINE_BATCH_READ_P99_MS"] == "5"
    # Executors are the driver pod's: they go with it.
    assert told["TRINE_BATCH_DRIVER_POD"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert told["TRINE_BATCH_EXECUTOR_CPU"] == "1.5"
    assert told["TRINE_BATCH_EXECUTOR_IMAGE"] == "registry.example.com/ml/trine/batch-scorer:0.1.0"
    executor = chart.pod("trine-batch-executor/executor")
    labels = executor["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "batch-executor"
    assert told["TRINE_BATCH_EXECUTOR_LABELS"] == ",".join(
        f"{name}={value}" for name, value in labels.items() if name != "team"
    )
    (role,) = chart.all("Role")
    assert [rule["resources"] for rule in role["rules"]] == [["pods"]]


def test_a_driver_alone_needs_no_rights() -> None:
    chart = Chart(files=("kind",))
    driver = chart.pod("trine-batch-card-risk")
    assert "TRINE_BATCH_MASTER" not in environment(driver, "driver")
    assert chart.all("Role") == []


def test_a_rebuild_waits_to_be_asked_for() -> None:
    chart = Chart(files=("production",))
    assert chart.get("CronJob", "trine-rebuild")["spec"]["suspend"] is True
    pod = chart.pod("trine-rebuild")
    _asks_for_sasl(environment(pod, "rebuild"), "TRINE")
    assert "--transactions=s3://bucket/trine?region=eu-central-1" in pod["spec"]["containers"][0]["args"]
    assert Chart({"rebuild": {"enabled": False}}).names("CronJob") == ["trine-batch-card-risk"]


def test_the_warehouse_is_a_kept_claim_or_an_object_store() -> None:
    claim = Chart().get("PersistentVolumeClaim", "trine-warehouse")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    chart = Chart(files=("production",))
    assert chart.all("PersistentVolumeClaim") == []
    archiver = chart.pod("trine-archiver")
    assert environment(archiver, "archiver")["TRINE_WORKER_WAREHOUSE"].startswith("s3://bucket/trine")
    for name, container in (
        ("trine-archiver", "archiver"),
        ("trine-batch-card-risk", "driver"),
        ("trine-batch-executor/executor", "executor"),
    ):
        (found,) = [one for one in chart.pod(name)["spec"]["containers"] if one["name"] == container]
        assert found["envFrom"] == [{"secretRef": {"name": "my-s3"}}], name


def test_external_redis_and_kafka_reach_every_service() -> None:
    chart = Chart(files=("production",))
    assert "trine-redis" not in chart.names("StatefulSet")
    assert "trine-kafka" not in chart.names("StatefulSet")
    for name, container, prefix in (
        ("trine-gateway", "gateway", "TRINE_GATEWAY"),
        ("trine-worker", "worker", "TRINE_WORKER"),
        ("trine-feature-store", "feature-store", "TRINE_FEATURES"),
    ):
        told = environment(chart.pod(name), container)
        assert told[f"{prefix}_REDIS_URL"] == {"secretKeyRef": {"name": "my-redis", "key": "url"}}
        _asks_for_sasl(told, prefix)
        mounts = {m["mountPath"] for m in chart.pod(name)["spec"]["containers"][0]["volumeMounts"]}
        assert {"/etc/trine/redis", "/etc/trine/kafka"} <= mounts
    _asks_for_sasl(environment(chart.pod("trine-archiver"), "archiver"), "TRINE_WORKER")
    registrar = environment(chart.pod("trine-torchserve"), "registrar")
    assert registrar["TRINE_REGISTRAR_REDIS_URL"] == {"secretKeyRef": {"name": "my-redis", "key": "url"}}
    (job,) = chart.names("Job")
    _asks_for_sasl(environment(chart.pod(job), "topics"), "TRINE_TOPICS")


def _asks_for_sasl(told: dict[str, Any], prefix: str) -> None:
    kafka = {name.removeprefix(f"{prefix}_KAFKA_"): value for name, value in told.items() if "_KAFKA_" in name}
    assert kafka == {
        "BOOTSTRAP": "a.example.com:9093,b.example.com:9093",
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_MECHANISM": "SCRAM-SHA-512",
        "SASL_USERNAME": {"secretKeyRef": {"name": "my-kafka-user", "key": "username"}},
        "SASL_PASSWORD": {"secretKeyRef": {"name": "my-kafka-user", "key": "password"}},
        "CA_FILE": "/etc/trine/kafka/ca.crt",
        "CERTIFICATE_FILE": "/etc/trine/kafka/tls.crt",
        "KEY_FILE": "/etc/trine/kafka/tls.key",
    }


def test_embedded_redis_keeps_everything_and_asks_for_its_password() -> None:
    chart = Chart()
    told = environment(chart.pod("trine-gateway"), "gateway")
    assert told["REDIS_PASSWORD"] == {"secretKeyRef": {"name": "trine-redis", "key": "redis-password"}}
    assert list(told).index("REDIS_PASSWORD") < list(told).index("TRINE_GATEWAY_REDIS_URL")  # or it is not expanded
    config = chart.get("ConfigMap", "trine-redis")["data"]["redis.conf"]
    assert "appendonly yes" in config
    assert "maxmemory-policy noeviction" in config
    assert "requirepass" not in config


def test_every_setting_is_one_that_its_service_knows() -> None:
    from batch_scorer.settings import BatchSettings
    from feature_store.service.settings import FeatureServiceSettings
    from inference_gateway.settings import GatewaySettings
    from service_kit.settings import ServiceSettings
    from stream_worker.settings import WorkerSettings
    from trine_cli.commands.topics import TopicsSettings

    from models.torchserve.registrar import Settings as RegistrarSettings

    services: list[type[ServiceSettings]] = [
        BatchSettings, FeatureServiceSettings, GatewaySettings, RegistrarSettings, WorkerSettings, TopicsSettings,
    ]  # fmt: skip
    known = {f"{s.model_config.get('env_prefix')}{name.upper()}" for s in services for name in s.model_fields}
    prefixes = tuple(str(service.model_config.get("env_prefix")) for service in services)
    for files in FILES:
        for name, pod in Chart(files=files).pods():
            for container in containers(pod):
                told = {one["name"] for one in container.get("env", []) if one["name"].startswith(prefixes)}
                assert told <= known, (name, told - known)
