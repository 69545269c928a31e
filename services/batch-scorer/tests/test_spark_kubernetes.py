"""Executors as pods: what Spark is told, and what an executor's container runs; a real cluster is k8s-tests' matter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from batch_scorer.container import executor_command, main
from batch_scorer.errors import JobError, StorageError
from batch_scorer.settings import BatchSettings
from batch_scorer.spark_kubernetes import configuration, on_kubernetes, remove_stale_executors

IN_A_POD = BatchSettings.model_validate(
    {
        "master": "k8s://https://kubernetes.default.svc",
        "kubernetes_namespace": "bank",
        "driver_pod": "trine-batch-card-risk-1-abcde",
        "driver_host": "10.1.2.3",
        "executor_image": "registry.example/trine/batch-scorer:1.2.3",
        "executor_template": Path("/etc/trine/executor.yaml"),
        "executor_labels": "app.kubernetes.io/instance=trine,app.kubernetes.io/component=batch",
        "executors": 3,
        "executor_tasks": 2,
        "executor_cpu": "500m",
    }
)
POD = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@10.1.2.3:7078",
    "SPARK_EXECUTOR_ID": "7",
    "SPARK_EXECUTOR_CORES": "2",
    "SPARK_EXECUTOR_MEMORY": "1024m",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.1.2.4",
    "SPARK_EXECUTOR_POD_NAME": "trine-exec-7",
    "SPARK_RESOURCE_PROFILE_ID": "0",
}


def test_only_a_master_of_kubernetes_makes_pods() -> None:
    assert on_kubernetes(IN_A_POD)
    assert not on_kubernetes(BatchSettings.model_validate({}))


def test_executors_reach_the_driver_at_fixed_ports_and_are_owned_by_its_pod() -> None:
    conf = configuration(IN_A_POD, "card-risk")
    assert conf["spark.driver.host"] == "10.1.2.3"
    assert conf["spark.driver.port"] == "7078"
    assert conf["spark.driver.blockManager.port"] == conf["spark.blockManager.port"] == "7079"
    assert conf["spark.kubernetes.driver.pod.name"] == "trine-batch-card-risk-1-abcde"
    assert conf["spark.kubernetes.namespace"] == "bank"


def test_executors_are_as_many_and_as_large_as_told_with_a_fraction_of_a_core() -> None:
    conf = configuration(IN_A_POD, "card-risk")
    assert (conf["spark.executor.instances"], conf["spark.executor.cores"]) == ("3", "2")
    assert conf["spark.kubernetes.executor.request.cores"] == "500m"
    assert "spark.kubernetes.executor.limit.cores" not in conf
    limited = IN_A_POD.model_copy(update={"executor_cpu_limit": "2"})
    assert configuration(limited, "card-risk")["spark.kubernetes.executor.limit.cores"] == "2"
    assert conf["spark.sql.shuffle.partitions"] == "24"


def test_executors_carry_the_labels_by_which_a_later_run_finds_them() -> None:
    conf = configuration(IN_A_POD, "card-risk")
    prefix = "spark.kubernetes.executor.label."
    assert {name.removeprefix(prefix): value for name, value in conf.items() if name.startswith(prefix)} == {
        "app.kubernetes.io/instance": "trine",
        "app.kubernetes.io/component": "batch",
        "trine-batch-job": "card-risk",
    }


@pytest.mark.parametrize("name", ["kubernetes_namespace", "driver_pod", "driver_host", "executor_image"])
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(JobError, match=f"TRINE_BATCH_{name.upper()}"):
        configuration(IN_A_POD.model_copy(update={name: ""}), "card-risk")


def test_labels_that_are_none_are_refused() -> None:
    with pytest.raises(JobError, match="TRINE_BATCH_EXECUTOR_LABELS"):
        configuration(IN_A_POD.model_copy(update={"executor_labels": "component"}), "card-risk")


class _ApiServer(BaseHTTPRequestHandler):
    """Keeps what it was asked; says 403 to a token that is not `good`."""

    asked: ClassVar[list[tuple[str, dict[str, list[str]]]]] = []

    def do_DELETE(self) -> None:
        url = urlsplit(self.path)
        self.asked.append((url.path, parse_qs(url.query)))
        self.send_response(200 if self.headers["Authorization"] == "Bearer good" else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[BatchSettings]:
    """Settings whose API server is one of this process."""
    _ApiServer.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _ApiServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield IN_A_POD.model_copy(update={"master": f"k8s://http://127.0.0.1:{server.server_port}"})
        server.shutdown()


def test_a_run_removes_what_earlier_runs_of_its_job_left_in_this_installation(
    api: BatchSettings, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("good")
    remove_stale_executors(api, "card-risk", tmp_path)
    ((path, query),) = _ApiServer.asked
    assert path == "/api/v1/namespaces/bank/pods"
    assert set(query["labelSelector"][0].split(",")) == {
        "app.kubernetes.io/instance=trine", "app.kubernetes.io/component=batch", "trine-batch-job=card-risk",
        "spark-role=executor",
    }  # fmt: skip
    assert query["gracePeriodSeconds"] == ["0"]


def test_what_may_not_be_removed_ends_the_run_as_something_to_try_again(api: BatchSettings, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("bad")
    with pytest.raises(StorageError, match=r"trine-batch-job=card-risk.*cannot be removed.*403"):
        remove_stale_executors(api, "card-risk", tmp_path)
    with pytest.raises(StorageError, match="token"):
        remove_stale_executors(api, "card-risk", tmp_path / "nowhere")


def test_an_executor_is_what_its_pods_variables_say_with_options_in_order() -> None:
    options = {f"SPARK_JAVA_OPT_{n}": f"-Dn={n}" for n in range(11)}
    command = executor_command(POD | options, "/usr/bin/java", Path("/opt/pyspark"))
    assert command[:12] == ["/usr/bin/java", *(f"-Dn={n}" for n in range(11))]
    assert command[12:16] == ["-Xms1024m", "-Xmx1024m", "-cp", "/opt/pyspark/jars/*"]
    flags = dict(zip(command[17::2], command[18::2], strict=True))
    assert flags["--driver-url"] == "spark://CoarseGrainedScheduler@10.1.2.3:7078"
    assert flags["--podName"] == "trine-exec-7"
    assert len(flags) == 7


def test_an_executor_outside_a_pod_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match="SPARK_DRIVER_URL"):
        executor_command({k: v for k, v in POD.items() if k != "SPARK_DRIVER_URL"}, "java", Path("/opt/pyspark"))
    assert main(["something"]) == 2
    assert "driver" in capsys.readouterr().err
