"""The whole path, all of it real: history, rebuilt state, the stack, a day of traffic, its replay from Kafka."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from feature_store.dataset import DAY_US
from feature_store.offline import compute_features
from feature_store.rebuild import rebuild
from model_release import Release
from model_release.rollout import NotLoaded
from model_release.rollout_store import RolloutStore
from model_release.testing import write_toy_release
from trine.scoring.v1.scoring_pb2 import ScoreSource
from trine_cli.archived import await_archived
from trine_cli.decision_replay import replay_decisions
from trine_cli.errors import UsageError
from trine_cli.kafka_archive import DECISIONS, KafkaArchive
from trine_cli.kafka_log import KafkaLog
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.stack import TORCHSERVE, Stack, StackOptions
from trine_cli.main import main
from trine_cli.rollout import promote, roll_back
from trine_cli.traffic import Reply, SendOptions, load_traffic, send
from trine_cli.warehouse_archive import WarehouseArchive

from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters

_SHARDS = 8
_START, _DAYS = date(2018, 4, 1), 42
_DAY = ((_START - date(1970, 1, 1)).days + _DAYS - 1) * DAY_US


@dataclass(frozen=True)
class Played:
    """A stack that has decided one day: `other` for the second quarter of it; TorchServe was away for the last one."""

    stack: Stack
    redis_url: str
    dataset: Path
    releases: Path
    release: Release
    other: Release
    replies: list[Reply]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("end-to-end")
    dataset, releases = folder / "data", folder / "releases"
    generate(GeneratorParameters(customers=150, terminals=200, days=_DAYS, start=_START), dataset)
    release, other = write_toy_release(releases, PLAN), write_toy_release(releases, PLAN, seed=5)
    with RedisServer(folder / "redis") as server:
        with redis.Redis.from_url(server.url) as client:
            rebuild(client, PLAN, dataset, _DAY, _SHARDS)
        options = StackOptions(
            releases=releases,
            release=release.id,
            data=folder / "stack",
            redis_url=server.url,
            shards=_SHARDS,
            env={"TRINE_WORKER_ARCHIVE_AGE_S": "1"},
        )
        with Stack(options) as stack:
            traffic = load_traffic(dataset, _DAY, _DAY + DAY_US)
            # Time enough for a busy machine: what is tested here is what was decided, not how fast.
            how = SendOptions(
                stack.grpc, rate=40.0, deadline_s=2.0, kafka_bootstrap=stack.kafka_bootstrap, shards=_SHARDS
            )
            replies = []
            for reply in send(traffic, how):
                replies.append(reply)
                if len(replies) == len(traffic) // 4:
                    promote_when_loaded(server.url, other.id)
                if len(replies) == len(traffic) // 2:
                    with redis.Redis.from_url(server.url) as client:
                        roll_back(RolloutStore(client), "fraud", False, 30)
                if len(replies) == len(traffic) * 3 // 4:
                    stack.kill(TORCHSERVE)
            # The last ones are safe in the spool and on their way.
            log, deadline = KafkaLog(stack.kafka_bootstrap), time.monotonic() + 60
            while sum(log.ends(DECISIONS).values()) < len(replies):
                assert time.monotonic() < deadline, "not all decisions reached Kafka"
                time.sleep(0.1)
            await_archived(stack.kafka_bootstrap, PLAN, 60)
            yield Played(stack, server.url, dataset, releases, release, other, replies)


def promote_when_loaded(url: str, release: str) -> None:
    """As `trine release promote` does, tried until everything in the stack has loaded it."""
    deadline = time.monotonic() + 120
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                promote(RolloutStore(client), "fraud", release, None, False, Path("none"), 30)
                return
            except NotLoaded:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def test_every_transaction_gets_a_decision_with_or_without_the_model(played: Played) -> None:
    answers = [r.response for r in played.replies if r.response is not None]
    assert len(answers) == len(played.replies) > 200
    sources = Counter(ScoreSource.Name(a.source) for a in answers)
    assert sources["SCORE_SOURCE_MODEL"] > len(answers) // 2
    assert sources["SCORE_SOURCE_RULES"] > 0
    by_release = Counter(a.release for a in answers)
    assert by_release.keys() == {played.release.id, played.other.id}
    assert by_release[played.other.id] > len(answers) // 8


def test_every_decision_is_equal_from_the_archive_also_when_redis_is_empty(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "decisions",
        "replay",
        "--releases",
        str(played.releases),
        "--json",
        "--out",
        str(tmp_path / "out.parquet"),
    ]
    command += ["--warehouse", played.stack.warehouse]
    base = ["--transactions", str(played.dataset), "--until", "2018-05-12"]
    with pytest.raises(SystemExit) as ended:
        main([*command, *base])
    assert ended.value.code in (0, None)
    said = json.loads(capsys.readouterr().out)
    assert (said["decisions"], said["different"]) == (len(played.replies), 0), "of both releases"
    assert said["sources"]["model"] > said["sources"]["rules"] > 0
    assert set(said["feature_lag_ms"]) == {"p50", "p90", "p99", "p100"}
    assert pq.read_table(tmp_path / "out.parquet").column("equal").to_pylist() == [True] * len(played.replies)

    # An archive is all it takes: also a Redis that has lost everything changes nothing.
    with redis.Redis.from_url(played.redis_url) as client:
        assert client.dbsize() > 0
        client.flushall()
    for archive in (WarehouseArchive(played.stack.warehouse), KafkaArchive(played.stack.kafka_bootstrap)):
        report, _ = replay_decisions(archive, played.releases, (played.dataset, _DAY), _DAY, _DAY + DAY_US)
        assert (report.decisions, report.different) == (len(played.replies), 0)


def test_a_wrong_base_is_noticed(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["decisions", "replay", "--releases", str(played.releases), "--json"]
    command += ["--warehouse", played.stack.warehouse]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--transactions", str(played.dataset), "--until", "2018-05-11"])
    assert ended.value.code == 5
    assert json.loads(capsys.readouterr().out)["different"] > 0
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 5
    assert json.loads(capsys.readouterr().out)["equal"] == 0
    with pytest.raises(SystemExit) as ended:
        main([*command, "--until", "2018-05-12"])
    assert ended.value.code == UsageError.exit_code


def test_vectors_of_the_day_are_those_of_the_offline_store(played: Played) -> None:
    """One definition, two modes: what a request saw live is what `trine features compute` says, but for the labels
    and events that had not come in yet; customers' features depend on neither."""
    offline = compute_features(PLAN, played.dataset, _DAY, _DAY + DAY_US)
    names = [n for n in PLAN.features if not n.startswith("terminal_fraud_share")]
    rows = dict(zip(offline.column("transaction_id").to_pylist(), range(offline.num_rows), strict=True))
    wanted = np.stack([offline.column(n).to_numpy().astype(np.float32) for n in names], axis=1)
    live = {r.decision_id: r for r in KafkaArchive(played.stack.kafka_bootstrap).decisions()}
    assert live.keys() == rows.keys()
    at = [PLAN.features.index(n) for n in names]
    for decision, record in live.items():
        found = np.array(record.vector, dtype=np.float32)[at]
        assert found.tolist() == wanted[rows[decision]].tolist(), decision
