"""The whole stack as real processes: it starts, several live side by side, it survives kills and leaves nothing."""

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

import httpx
import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from model_release import ReleaseError
from model_release.testing import write_toy_release
from trine_cli.errors import BadInput
from trine_cli.local import loopback
from trine_cli.local.errors import LocalStackError
from trine_cli.local.fixtures import PrivateKafka
from trine_cli.local.ports import HOST, free_port
from trine_cli.local.stack import ARCHIVE, FEATURES, GATEWAY, KAFKA, REDIS, WORKER, Stack, StackOptions

from models.fraud.features import PLAN

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    write_toy_release(folder, PLAN)
    return folder


@pytest.fixture(scope="module")
def stack(releases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with everything of its own; tests leave all of it running."""
    with Stack(StackOptions(releases, data=tmp_path_factory.mktemp("data"), gateways=2)) as running:
        yield running


class TrineUp:
    """`trine up --json` as a process of its own."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "trine_cli.main", "up", "--json", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def addresses(self) -> dict[str, Any]:
        """What it prints when it is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        found: dict[str, Any] = json.loads(line)
        return found


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    try:
        return loopback.get(f"{url}/readyz", 5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def family(pids: list[int]) -> list[int]:
    """The processes and all their descendants."""
    return pids + [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]


def test_everything_is_ready_and_on_loopback(stack: Stack) -> None:
    for url in (stack.rest, stack.features_rest, stack.worker_http):
        assert is_ready(url)
    pids = stack.addresses()["pids"]
    assert isinstance(pids, dict)
    assert None not in pids.values()
    listening = [
        found.laddr
        for pid in family(list(pids.values()))
        for found in psutil.Process(pid).net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} <= {HOST, f"::ffff:{HOST}"}
    gateway = pids[GATEWAY]
    assert isinstance(gateway, int)
    assert sum(address.port == stack.ports.grpc for address in listening) >= 2, "two gateway processes share a port"
    assert {path.stem for path in stack.logs.iterdir()} >= set(pids)


def test_a_killed_service_is_started_again_on_its_address(stack: Stack) -> None:
    killed = stack.pid(FEATURES)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: stack.pid(FEATURES) not in (None, killed) and is_ready(stack.features_rest))


def test_a_paused_worker_keeps_its_process_and_a_stopped_one_stays_down(stack: Stack) -> None:
    pid = stack.pid(WORKER)
    assert pid is not None
    stack.pause(WORKER)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    stack.resume(WORKER)
    eventually(lambda: is_ready(stack.worker_http))
    assert stack.pid(WORKER) == pid
    stack.stop(WORKER)
    assert gone(pid)
    assert stack.pid(WORKER) is None
    stack.restart(WORKER)
    assert is_ready(stack.worker_http)


def test_one_killed_with_its_parent_leaves_nothing_and_its_neighbour_alone(stack: Stack, releases: Path) -> None:
    # TorchServe is shared: it is what takes long to start.
    other = TrineUp("--releases", str(releases), "--torchserve", stack.torchserve)
    try:
        addresses = other.addresses()
        assert is_ready(addresses["rest"])
        assert is_ready(stack.rest)
        mine = stack.addresses()
        for name in ("grpc", "rest", "redis_url", "kafka_bootstrap", "worker_http", "features_rest", "logs"):
            assert addresses[name] != mine[name]
        everybody = family([pid for pid in addresses["pids"].values() if pid])
        assert len(everybody) >= 5
    finally:
        other.process.kill()
        other.process.wait()
    eventually(lambda: all(gone(pid) for pid in everybody))
    assert is_ready(stack.rest)
    assert stack.addresses()["pids"] == mine["pids"]


def test_servers_that_already_run_are_used_and_left_running(
    stack: Stack, releases: Path, redis_url: str, private_kafka: PrivateKafka
) -> None:
    kafka_bootstrap = private_kafka(shards=64).bootstrap  # as many as `trine up` has
    words = ["--redis-url", redis_url, "--kafka-bootstrap", kafka_bootstrap, "--torchserve", stack.torchserve]
    other = TrineUp("--releases", str(releases), *words)
    try:
        addresses = other.addresses()
        assert (addresses["redis_url"], addresses["kafka_bootstrap"]) == (redis_url, kafka_bootstrap)
        assert set(addresses["pids"]) == {ARCHIVE, WORKER, GATEWAY, FEATURES}
        everybody = family(list(addresses["pids"].values()))
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(90) == 0
    finally:
        other.process.kill()
    assert all(gone(pid) for pid in everybody)
    assert stack.redis_server is not None
    assert stack.redis_server.alive


def test_data_outlives_the_stack_and_is_locked_meanwhile(stack: Stack, releases: Path, tmp_path: Path) -> None:
    options = StackOptions(releases, data=tmp_path / "data", torchserve=stack.torchserve, shards=4)
    with Stack(options) as first:
        with pytest.raises(LocalStackError, match="is in use by another trine up"):
            Stack(options)
        assert first.redis_server is not None
        with first.redis_server.connect() as client:
            client.set("mine", "kept")
        producer = Producer({"bootstrap.servers": first.kafka_bootstrap})
        producer.produce("trine.fraud-reports", b"kept", partition=0)
        assert producer.flush(20) == 0
        everybody = family([pid for name in (REDIS, KAFKA, GATEWAY, WORKER) if (pid := first.pid(name))])
    assert all(gone(pid) for pid in everybody)
    with Stack(options) as second:
        assert second.redis_server is not None
        with second.redis_server.connect() as client:
            assert client.get("mine") == b"kept"
        consumer = Consumer({"bootstrap.servers": second.kafka_bootstrap, "group.id": "test"})
        consumer.assign([TopicPartition("trine.fraud-reports", 0, 0)])
        assert [message.value() for message in consumer.consume(1, timeout=20)] == [b"kept"]
        consumer.close()


def test_a_taken_port_and_absent_servers_are_named_before_anything_starts(releases: Path) -> None:
    nobody = f"{HOST}:{free_port()}"
    with socket.create_server((HOST, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(LocalStackError, match=rf"--grpc-port: port {port} is taken"):
            Stack(StackOptions(releases, grpc_port=port)).start()
    with pytest.raises(LocalStackError, match=rf"--redis-url redis://{nobody}: "):
        Stack(StackOptions(releases, redis_url=f"redis://{nobody}")).start()
    with pytest.raises(LocalStackError, match=f"no Kafka answers at {nobody}"):
        Stack(StackOptions(releases, kafka_bootstrap=nobody)).start()
    with pytest.raises(LocalStackError, match=f"--torchserve {nobody}: need HOST:PORT"):
        Stack(StackOptions(releases, torchserve=nobody)).start()


def test_without_a_release_it_says_how_to_make_one(tmp_path: Path, releases: Path) -> None:
    with pytest.raises(BadInput, match="no release there"):
        Stack(StackOptions(tmp_path))
    with pytest.raises(ReleaseError, match=r"manifest\.json: not readable"):
        Stack(StackOptions(releases, release="fraud-000000000000"))
