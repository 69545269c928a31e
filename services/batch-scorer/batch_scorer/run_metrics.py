"""What Prometheus gets to know of a run: pushed to a Pushgateway where one is set, else a text file of the run."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request

from service_kit.metrics import CONTENT_TYPE, Metrics

from batch_scorer.errors import StorageError
from batch_scorer.history import Folder, Manifest

_TIMEOUT_S = 10


def exposition(manifest: Manifest) -> bytes:
    """The page of metrics: last run's cut-off, rows, seconds by stage, checks."""
    metrics = Metrics("batch")
    labels = [manifest.job]
    metrics.gauge("rows", "Rows of the last run", ["job"]).labels(*labels).set(manifest.rows)
    metrics.gauge("population_rows", "Keys that were to get a row", ["job"]).labels(*labels).set(manifest.population)
    metrics.gauge("cutoff_seconds", "Cut-off of the last run, since the epoch", ["job"]).labels(*labels).set(
        manifest.cutoff_us / 1e6
    )
    metrics.gauge("published_state", "1 where the last run was published", ["job"]).labels(*labels).set(
        manifest.outcome == "published"
    )
    metrics.gauge("failed_checks_rows", "Checks that the last run failed", ["job"]).labels(*labels).set(
        len(manifest.failed)
    )
    metrics.gauge("redis_bytes", "Bytes of the run's rows in Redis", ["job"]).labels(*labels).set(manifest.redis_bytes)
    metrics.gauge("paused_seconds", "Seconds that writers yielded to online reads", ["job"]).labels(*labels).set(
        manifest.paused_s
    )
    stages = metrics.gauge("stage_seconds", "Seconds of the last run by stage", ["job", "stage"])
    for stage, seconds in manifest.seconds.items():
        stages.labels(manifest.job, stage).set(seconds)
    return metrics.exposition()


def deliver_metrics(pushgateway: str, manifest: Manifest, page: bytes, folder: Folder, file: str) -> None:
    """Push to the gateway, or write the file. Raises StorageError."""
    if not pushgateway:
        folder.write(file, page)
        return
    url = f"{pushgateway.rstrip('/')}/metrics/job/trine-batch/batch_job/{urllib.parse.quote(manifest.job)}"
    request = urllib.request.Request(url, data=page, method="PUT", headers={"Content-Type": CONTENT_TYPE})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise StorageError(f"Pushgateway {pushgateway}: {error}") from error
