"""Spark on Kubernetes: this process is the driver, in a pod of its own, and asks the API server for executor pods.

Their image is the driver's: it holds Spark, the job's code and its libraries. All else of them is a pod template
(`TRINE_BATCH_EXECUTOR_TEMPLATE`, a file that the chart writes): security context, the volume of the warehouse, and an
init container that brings the releases, as every pod of Trine has one; sending a release to each executor over the
network of a run would need code here, and would leave other things of the release's folder behind.

Ports are fixed, so that a NetworkPolicy can name them. Executors are owned by the driver's pod and go with it. A
driver that was killed leaves its pod, and so its executors: a run removes those of its job before it starts its own,
which it may since it holds the job's lease.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from batch_scorer.errors import JobError, StorageError
from batch_scorer.settings import BatchSettings

#: On every executor: the job that it works for.
JOB_LABEL = "trine-batch-job"
#: What Kubernetes puts into every pod that has a service account.
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONTAINER = "executor"
_API_TIMEOUT_S = 30.0


def on_kubernetes(settings: BatchSettings) -> bool:
    """Whether executors are pods."""
    return settings.master.startswith("k8s://")


def configuration(settings: BatchSettings, job: str) -> dict[str, str]:
    """What Spark is told about driver and executors. Raises JobError: a setting is missing."""
    needed = {
        "kubernetes_namespace": settings.kubernetes_namespace,
        "driver_pod": settings.driver_pod,
        "driver_host": settings.driver_host,
        "executor_image": settings.executor_image,
        "executor_template": settings.executor_template,
    }
    if missing := [f"TRINE_BATCH_{name.upper()}" for name, value in needed.items() if not value]:
        raise JobError(f"master {settings.master}: set {', '.join(missing)}")
    labels = {**_labels(settings), JOB_LABEL: job}
    return {
        "spark.kubernetes.namespace": settings.kubernetes_namespace,
        "spark.kubernetes.driver.pod.name": settings.driver_pod,
        "spark.driver.host": settings.driver_host,
        "spark.driver.port": str(settings.driver_port),
        "spark.driver.blockManager.port": str(settings.block_manager_port),
        "spark.blockManager.port": str(settings.block_manager_port),
        "spark.kubernetes.container.image": settings.executor_image,
        "spark.kubernetes.container.image.pullPolicy": settings.executor_pull_policy,
        "spark.kubernetes.executor.podTemplateFile": str(settings.executor_template),
        "spark.kubernetes.executor.podTemplateContainerName": _CONTAINER,
        "spark.executor.instances": str(settings.executors),
        "spark.executor.cores": str(settings.executor_tasks),
        "spark.kubernetes.executor.request.cores": settings.executor_cpu,
        **(
            {"spark.kubernetes.executor.limit.cores": settings.executor_cpu_limit}
            if settings.executor_cpu_limit
            else {}
        ),
        "spark.executor.memory": settings.executor_memory,
        "spark.executor.memoryOverhead": settings.executor_memory_overhead,
        **{f"spark.kubernetes.executor.label.{name}": value for name, value in labels.items()},
        # Few, as a task costs about 10 ms; what is small is merged by Spark's adaptive execution.
        "spark.sql.shuffle.partitions": str(4 * settings.executors * settings.executor_tasks),
        # A driver needs rights on pods, and on nothing else.
        "spark.kubernetes.executor.disableConfigMap": "true",
        "spark.kubernetes.driver.service.deleteOnTermination": "false",
        "spark.kubernetes.driver.ownPersistentVolumeClaim": "false",
    }


def remove_stale_executors(settings: BatchSettings, job: str, account: Path = SERVICE_ACCOUNT) -> None:
    """Deletes the executors that earlier runs of the job left in this installation. Raises StorageError.

    One request to the API server that Spark uses too, with the pod's own account; a client library would be a tenth
    of the image.
    """
    labels = {**_labels(settings), JOB_LABEL: job, "spark-role": "executor"}
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    query = urlencode({"labelSelector": selector, "gracePeriodSeconds": 0})
    pods = f"{settings.master.removeprefix('k8s://')}/api/v1/namespaces/{settings.kubernetes_namespace}/pods?{query}"
    try:
        token = (account / "token").read_text()
        trust = ssl.create_default_context(cafile=str(account / "ca.crt")) if pods.startswith("https:") else None
        asked = Request(pods, method="DELETE", headers={"Authorization": f"Bearer {token}"})
        with urlopen(asked, timeout=_API_TIMEOUT_S, context=trust):
            pass
    except OSError as error:  # urllib's errors are OSErrors too
        raise StorageError(f"Kubernetes: executors {selector} cannot be removed: {error}") from error


def _labels(settings: BatchSettings) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in settings.executor_labels.split(",") if pair]
    if wrong := [name for name, separator, value in pairs if not (name and separator and value)]:
        raise JobError(f"TRINE_BATCH_EXECUTOR_LABELS: {wrong}: must be name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}
