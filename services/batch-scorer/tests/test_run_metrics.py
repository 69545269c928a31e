"""A run's metrics: pushed under the job's name, or told why not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from batch_scorer.checks import Check
from batch_scorer.errors import StorageError
from batch_scorer.history import METRICS, Folder, Manifest, utc
from batch_scorer.run_metrics import deliver_metrics, exposition
from feature_store.warehouse_store import WarehouseStore
from prometheus_client.parser import text_string_to_metric_families

RUN = "churn-20180606t000000-0123abcd"
CUTOFF_US = 1_528_243_200_000_000
MANIFEST = Manifest(
    run=RUN, job="churn", model="churn", release="churn-0123456789ab", cutoff=utc(CUTOFF_US), cutoff_us=CUTOFF_US,
    outcome="refused", who="somebody", began=utc(CUTOFF_US), population=12, rows=11, blocks=1, parts=[],
    checks=[Check(name="rows", passed=False, found=11 / 12, limit=1.0, detail="11 rows for 12 keys")],
    outputs={}, seconds={"score": 1.5, "write": 0.25}, stage_rows={}, files_read={}, versions={},
)  # fmt: skip


@contextmanager
def listening(status: int) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server's URL, and what it is sent: method, path, body."""
    sent: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            sent.append((self.command, self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", sent
    finally:
        server.shutdown()
        server.server_close()


def folder(path: Path) -> Folder:
    return Folder(WarehouseStore(path), RUN)


def test_metrics_replace_the_jobs_last_ones(tmp_path: Path) -> None:
    with listening(200) as (url, sent):
        deliver_metrics(url, MANIFEST, exposition(MANIFEST), folder(tmp_path), METRICS)
    ((method, path, body),) = sent
    assert (method, path) == ("PUT", "/metrics/job/trine-batch/batch_job/churn")
    found = {
        (s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(body.decode()) for s in f.samples
    }
    assert found["trine_batch_rows", "churn"] == 11
    assert found["trine_batch_published_state", "churn"] == 0
    assert found["trine_batch_failed_checks_rows", "churn"] == 1
    assert found["trine_batch_stage_seconds", "churn", "score"] == 1.5
    assert found["trine_batch_cutoff_seconds", "churn"] == CUTOFF_US / 1e6


@pytest.mark.parametrize("status", [500, 400])
def test_a_gateway_that_refuses_or_is_away_is_named(tmp_path: Path, status: int) -> None:
    with listening(status) as (url, _), pytest.raises(StorageError, match=f"Pushgateway {url}.*{status}"):
        deliver_metrics(url, MANIFEST, exposition(MANIFEST), folder(tmp_path), METRICS)
    with pytest.raises(StorageError, match=f"Pushgateway {url}"):
        deliver_metrics(url, MANIFEST, exposition(MANIFEST), folder(tmp_path), METRICS)


def test_without_one_they_are_a_file_of_the_run(tmp_path: Path) -> None:
    deliver_metrics("", MANIFEST, b"page", folder(tmp_path), METRICS)
    assert (tmp_path / "runs" / "churn" / RUN / METRICS).read_bytes() == b"page"
