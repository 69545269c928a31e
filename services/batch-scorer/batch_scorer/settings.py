"""Settings of batch jobs: environment variables TRINE_BATCH_*; options of `trine batch` go on top."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.settings import ServiceSettings


class BatchSettings(ServiceSettings):
    """The defaults are those of one machine."""

    model_config = SettingsConfigDict(env_prefix="TRINE_BATCH_")

    redis_url: str = "redis://127.0.0.1:6379/0"
    #: Folder or URI (s3://…) of the warehouse; runs are kept below its folder runs/.
    warehouse: str = "data"
    #: Folder of releases, on every executor under the same path; and which of them; without a
    #: name the current one of the model's pointer, where there is none the newest.
    releases: Path = Path("releases")
    release: str = ""
    #: What `python -m batch_scorer.main` runs: a module with a `JOB`, and the cut-off, like 2018-08-08T00:00:00Z, or
    #: `today` for the last midnight UTC.
    job_module: str = ""
    cutoff: str = ""
    #: A reason to publish a run that fails checks or is older than the published one; recorded.
    force: str = ""

    master: str = "local[*]"
    driver_memory: str = "2g"
    #: Spark's spill and log while a run goes on; a folder for each run below it.
    scratch: Path = Path(tempfile.gettempdir()) / "trine-batch"
    #: Megabytes of rows in one part of a run: the unit of a task's memory, of retry and of progress.
    part_mb: int = Field(16, ge=1, le=1_024)
    #: How often a task is tried; an executor that dies costs one try.
    task_tries: int = Field(4, ge=1, le=16)

    #: With a master k8s://… (`spark_kubernetes`): the driver's namespace, pod and address, and its fixed ports.
    kubernetes_namespace: str = ""
    driver_pod: str = ""
    driver_host: str = ""
    driver_port: int = Field(7078, ge=1_024, le=65_535)
    block_manager_port: int = Field(7079, ge=1_024, le=65_535)
    #: Executors: how many, their image, the file of their pod template, whose container is called `executor`, and the
    #: labels that tell those of this installation (name=value,…).
    executors: int = Field(2, ge=1, le=1_000)
    executor_image: str = ""
    executor_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    executor_template: Path | None = None
    executor_labels: str = ""
    #: Tasks that an executor works on at a time; the CPU that it asks for, which may be a fraction (500m), and at most.
    executor_tasks: int = Field(1, ge=1, le=256)
    executor_cpu: str = "1"
    executor_cpu_limit: str = ""
    #: Of its JVM, and of the Python workers beside it.
    executor_memory: str = "1g"
    executor_memory_overhead: str = "1g"

    #: A driver that is killed or paused for so long loses the job to another; how long to wait for such a one.
    lease_s: float = Field(30.0, ge=0.2, le=3_600)
    wait_s: float = Field(45.0, ge=0, le=3_600)
    #: Rows of runs that were replaced live on for rollback; those of runs that never were published, less long.
    superseded_s: int = Field(7 * 86_400, ge=60)
    unpublished_s: int = Field(86_400, ge=60)
    #: How long Redis may be away in the middle of a run.
    redis_patience_s: float = Field(60.0, ge=0)
    #: Rows of a block: what one read fetches and one write replaces.
    block_rows: int = Field(200, ge=1, le=10_000)
    #: The writers pause while the 99th percentile of online reads is above this; 0: they never pause.
    read_p99_ms: float = Field(10.0, ge=0)

    #: URL of a Prometheus Pushgateway; without one the metrics are a file of the run.
    pushgateway: str = ""
    #: Days that `prune` keeps runs that were refused, and the history of published ones (0: for ever).
    refused_days: float = Field(30.0, ge=0)
    history_days: float = Field(0.0, ge=0)
