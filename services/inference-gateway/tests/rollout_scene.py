"""What tests of a rollout are made of: a registrar, operators, and clients that never stop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import redis
from feature_store.definitions import FeaturePlan
from feature_store.plan_union import fingerprints
from model_release.rollout import Pointer
from model_release.rollout_reporter import keep_reporting
from model_release.rollout_store import WORKER, ProcessReport, RolloutStore
from tests.gateway_scene import transaction
from trine.scoring.v1 import scoring_pb2 as scoring
from trine.scoring.v1 import scoring_pb2_grpc as scoring_grpc
from trine_cli.local.ports import HOST, free_port
from trine_cli.local.service import Service
from trine_cli.local.torchserve import TorchServe
from trine_cli.main import build


def registrar(server: TorchServe, releases: Path, redis_url: str, folder: Path) -> Service:
    """Keeps the server serving the folder, and reports; not started yet."""
    port = free_port()
    settings = {
        "management": server.management_url, "inference": server.inference_url, "releases": releases,
        "redis_url": redis_url, "host": HOST, "http_port": port, "interval_s": 0.2,
    }  # fmt: skip
    env = {f"TRINE_REGISTRAR_{name.upper()}": str(value) for name, value in settings.items()}
    return Service(
        "registrar", "models.torchserve.registrar", log=folder / "registrar.log", address=f"{HOST}:{port}", env=env,
        http_port=port,
    )  # fmt: skip


class WorkerReports:
    """What a worker that keeps a plan's views says; the states in Redis are the scene's own (`build_state`)."""

    def __init__(self, url: str, plan: FeaturePlan) -> None:
        self.plan = plan
        self._stop = threading.Event()
        self._thread = threading.Thread(target=keep_reporting, args=(url, self._report, self._stop))

    def _report(self) -> ProcessReport:
        return ProcessReport(WORKER, "of-the-test/1", self.plan.model, keeps=fingerprints(self.plan))

    def __enter__(self) -> WorkerReports:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


class Operator:
    """Types `trine release ...` in this process."""

    def __init__(self, url: str, capture: object) -> None:
        self.url, self._capture = url, capture

    def __call__(self, *words: object) -> tuple[int, dict[str, object], str]:
        """Exit code, what --json gave, and what people read."""
        from trine_cli.errors import exit_code

        self._capture.readouterr()  # type: ignore[attr-defined]
        code, text = 0, ""
        try:
            build("release")(["release", *map(str, words), "--redis-url", self.url, "--json"], standalone_mode=False)
        except Exception as error:
            code, text = exit_code(error), str(error)
        out, err = self._capture.readouterr()  # type: ignore[attr-defined]
        return code, json.loads(out) if out.strip() else {}, text + err

    def pointer(self) -> Pointer:
        with redis.Redis.from_url(self.url) as client:
            found = RolloutStore(client).read("fraud")
        assert found is not None
        return found


@dataclass
class Answers:
    """What the clients got: by customer the releases, in order; and everything that went wrong."""

    releases: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    by_model: int = 0
    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Clients:
    """Threads that each send one transaction after the other, until told to stop."""

    def __init__(self, addresses: Iterable[str], customers: int = 40, threads: int = 2) -> None:
        self._addresses, self._customers = list(addresses), customers
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.answers = Answers()
        # Of the requests sent since `releases_from_now` was called last: releases and number of their answers.
        self._seen: set[str] = set()
        self._call, self._fresh = 0, 0
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def releases_from_now(self, count: int = 30, timeout_s: float = 180.0) -> set[str]:
        """Releases of the next `count` answers whose requests are sent from now on."""
        with self._lock:
            self._seen, self._fresh, self._call = set(), 0, self._call + 1
        end = time.monotonic() + timeout_s
        while self._fresh < count:
            assert time.monotonic() < end, "no answers"
            time.sleep(0.01)
        return set(self._seen)

    def _send(self, number: int) -> None:
        channel = grpc.insecure_channel(
            self._addresses[number % len(self._addresses)], [("grpc.use_local_subchannel_pool", 1)]
        )
        stub, sent = scoring_grpc.ScoringServiceStub(channel), number
        while not self._stop.is_set():
            customer = f"c-{sent % self._customers}"
            sent += 1
            call = self._call
            try:
                answer: scoring.ScoreTransactionResponse = stub.ScoreTransaction(
                    transaction(customer=customer), timeout=20.0
                )
            except grpc.RpcError as error:
                self.answers.failed.append(str(error))
                continue
            with self._lock:
                self.answers.count += 1
                self.answers.releases.setdefault(customer, []).append(answer.release)
                self.answers.by_model += answer.source == scoring.SCORE_SOURCE_MODEL
                reason = answer.fallback_reason
                self.answers.reasons[reason] = self.answers.reasons.get(reason, 0) + 1
                if call == self._call:
                    self._seen.add(answer.release)
                    self._fresh += 1
            # Load enough that no moment goes by without requests, and cores left for what is being loaded.
            time.sleep(0.02)
        channel.close()


def last_of_each(releases: Mapping[str, list[str]]) -> dict[str, str]:
    """By customer the release of its last answer."""
    return {customer: names[-1] for customer, names in releases.items()}
