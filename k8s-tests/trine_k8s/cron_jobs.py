"""Batch jobs run by hand from their CronJob, as `kubectl create job --from=cronjob/NAME` does."""

from __future__ import annotations

import secrets
from typing import Any

from trine_k8s.installation import Installation


def run_by_hand(installation: Installation, job: str) -> str:
    """Name of the Job that was made; does not wait."""
    namespace = installation.namespace
    found = _named(namespace.batch.list_namespaced_cron_job(namespace.name).items, job)
    name = f"{found.metadata.name[:40]}-by-hand-{secrets.token_hex(2)}"
    made = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": found.spec.job_template.metadata.labels,
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "CronJob",
                    "name": found.metadata.name,
                    "uid": found.metadata.uid,
                    "controller": True,
                }
            ],
        },
        "spec": namespace.batch.api_client.sanitize_for_serialization(found.spec.job_template.spec),
    }
    namespace.batch.create_namespaced_job(namespace.name, made)
    return name


def _named(cron_jobs: list[Any], job: str) -> Any:
    (found,) = (c for c in cron_jobs if c.metadata.name.endswith(f"-{job}"))
    return found


def state_of(installation: Installation, job: str) -> str | None:
    """`succeeded` or `failed`; None while it is at work."""
    found = installation.namespace.batch.read_namespaced_job(job, installation.namespace.name)
    conditions = {c.type for c in found.status.conditions or () if c.status == "True"}
    if "Complete" in conditions:
        return "succeeded"
    return "failed" if "Failed" in conditions else None


def driver_pods(installation: Installation, job: str) -> list[Any]:
    return installation.namespace.pods(f"batch.kubernetes.io/job-name={job}")


def executor_pods(installation: Installation, job: str) -> set[str]:
    """Names of the pods that the job's drivers own."""
    drivers = {p.metadata.uid for p in driver_pods(installation, job)}
    found = installation.namespace.pods("spark-role=executor")
    return {p.metadata.name for p in found if any(o.uid in drivers for o in p.metadata.owner_references or ())}
