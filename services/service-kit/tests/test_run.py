"""Start, drain, failure and supervision, with real processes, ports and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = Path(__file__).with_name("sample_service.py")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def eventually(check: Callable[[], Any], within_s: float = 30.0) -> Any:
    """What `check` returns once that is truthy."""
    deadline = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)
    return found


class Sample:
    """The sample service as a process; `env` are its settings without their prefix."""

    def __init__(self, log: Path, **env: object) -> None:
        self.http, self.grpc, self._log = free_port(), free_port(), log
        given = {"HTTP_PORT": self.http, "GRPC_PORT": self.grpc, **env}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVICE)],
            env={**os.environ, **{f"TRINE_SAMPLE_{k}": str(v) for k, v in given.items()}},
            stderr=log.open("wb"),
        )

    def get(self, path: str, timeout: float = 10.0) -> httpx.Response | None:
        try:
            # Reading certificates would take 20 times as long as the request.
            return httpx.get(f"http://127.0.0.1:{self.http}{path}", timeout=timeout, verify=False)
        except httpx.TransportError:
            return None

    def ready(self) -> bool:
        reply = self.get("/readyz")
        return reply is not None and reply.status_code == 200

    def pids(self) -> set[int]:
        """The processes that answer on the shared port."""
        return {int(r.text) for _ in range(20) if (r := self.get("/job")) is not None}

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Sample]]:
    samples: list[Sample] = []

    def make(**env: object) -> Sample:
        samples.append(Sample(tmp_path / f"{len(samples)}.log", **env))
        return samples[-1]

    yield make
    for sample in samples:
        if sample.process.poll() is None:
            sample.process.terminate()
            try:
                sample.process.wait(20)
            except subprocess.TimeoutExpired:
                sample.process.kill()


def test_sigterm_finishes_what_is_in_flight_then_stops_parts_last_first(start: Callable[..., Sample]) -> None:
    sample = start()
    eventually(sample.ready)
    slow = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import httpx; print(httpx.get('http://127.0.0.1:{sample.http}/job?seconds=1.5').text)",
        ],
        stdout=subprocess.PIPE,
    )
    eventually(lambda: any(line["event"] == "working" for line in sample.logged()))
    sample.process.send_signal(signal.SIGTERM)
    assert slow.communicate(timeout=20)[0].decode().strip() == str(sample.process.pid)
    assert sample.process.wait(20) == 0
    lines = sample.logged()
    assert [line["part"] for line in lines if line["event"] == "stopped"] == ["thread", "base"]
    assert {"transaction_id": "t-1", "component": "sample", "level": "info"}.items() <= next(
        line for line in lines if line["event"] == "working"
    ).items()


def test_readiness_goes_off_before_work_is_refused(start: Callable[..., Sample]) -> None:
    sample = start(DRAIN_NOTICE_S=1.0)
    eventually(sample.ready)
    with grpc.insecure_channel(f"127.0.0.1:{sample.grpc}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        sample.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        reply = sample.get("/readyz")
        assert reply is not None
        assert reply.status_code == 503
        assert reply.json()["not_ready"] == {"stop": "draining"}
        work = sample.get("/job")
        assert work is not None
        assert work.status_code == 200
        watch.cancel()
    assert sample.process.wait(20) == 0


def test_second_signal_ends_at_once(start: Callable[..., Sample]) -> None:
    sample = start(HANG_ON_STOP=True)
    eventually(sample.ready)
    sample.process.send_signal(signal.SIGTERM)
    eventually(lambda: any(line["event"] == "draining" for line in sample.logged()))
    sample.process.send_signal(signal.SIGTERM)
    assert sample.process.wait(5) == 1


def test_failed_task_ends_the_service_with_a_reason(start: Callable[..., Sample]) -> None:
    sample = start()
    eventually(sample.ready)
    sample.get("/fail")
    assert sample.process.wait(20) == 1
    assert any(line["event"] == "service failed" and "no luck" in line["reason"] for line in sample.logged())


def test_processes_share_ports_restart_when_killed_and_count_together(start: Callable[..., Sample]) -> None:
    sample = start(PROCESSES=2)
    eventually(lambda: len(sample.pids()) == 2)
    before = sample.pids()
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    after = eventually(lambda: len(now := sample.pids()) == 2 and victim not in now and now)
    assert before < after

    page = sample.get("/metrics")
    assert page is not None
    total = next(line for line in page.text.splitlines() if line.startswith("trine_sample_requests_total "))
    served = sum(line["event"] == "working" for line in sample.logged())
    assert float(total.split()[1]) == served > 40
    assert "trine_sample_ready_state 1.0" in page.text

    sample.process.send_signal(signal.SIGTERM)
    assert sample.process.wait(20) == 0
    assert sample.get("/livez") is None


def test_children_end_when_their_parent_is_killed(start: Callable[..., Sample]) -> None:
    sample = start(PROCESSES=2)
    eventually(lambda: len(sample.pids()) == 2)
    sample.process.kill()
    sample.process.wait()
    eventually(lambda: sample.get("/livez") is None)


@pytest.mark.parametrize("processes", [1, 2])
def test_refused_start_is_not_tried_again(start: Callable[..., Sample], processes: int) -> None:
    sample = start(REFUSE=True, PROCESSES=processes)
    assert sample.process.wait(30) == 78
    assert any(line["event"] == "start refused" and "evicts" in line["reason"] for line in sample.logged())


def test_wrong_setting_is_refused_by_name(start: Callable[..., Sample]) -> None:
    sample = start(PROCESSES="several")
    assert sample.process.wait(30) == 78
    assert any("TRINE_SAMPLE_PROCESSES" in line.get("reason", "") for line in sample.logged())
