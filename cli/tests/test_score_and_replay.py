"""`trine score` and `trine replay` against a real gateway: what they print, and which exit code means what."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from feature_store.updates import StateWriter
from model_release.testing import write_toy_release
from trine_cli import traffic
from trine_cli.kafka_log import KafkaLog
from trine_cli.local.fixtures import SHARDS, KeptDatabase
from trine_cli.local.ports import free_port, free_ports
from trine_cli.local.stack_services import Ports, ServiceFactory

from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.sources import load_fraud_reports, load_transactions

DAY, NEXT_DAY = "2018-04-09", "2018-04-10"
CARD = ["--customer", "c-1", "--terminal", "t-1", "--time", "2018-04-09T12:00:00Z"]
LARGE = "250.00"
"""The toy release's one rule denies from 220.00 on."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "data"
    generate(GeneratorParameters(customers=60, terminals=120, days=10, start=date(2018, 4, 1)), folder)
    return folder


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, kept_database: KeptDatabase, kafka_bootstrap: str
) -> Iterator[str]:
    """HOST:PORT of a gateway whose TorchServe is away: it answers by rules."""
    folder, url = tmp_path_factory.mktemp("gateway"), kept_database()
    release = write_toy_release(folder / "releases", PLAN)
    with redis.Redis.from_url(url) as client:
        writer = StateWriter(client, PLAN, "test")
        for entity in PLAN.entities:
            writer.claim(entity.name, PLAN.topic_of(entity.name), "topic-of-test", range(SHARDS))
            writer.heartbeat(entity.name, dict.fromkeys(range(SHARDS), time.time_ns() // 1_000))
    factory = ServiceFactory(
        releases=folder / "releases", release=release.id, redis_url=url, kafka_bootstrap=kafka_bootstrap, shards=SHARDS,
        ports=Ports(*free_ports(7)), logs=folder, env={},
    )  # fmt: skip
    with factory.gateway(f"127.0.0.1:{free_port()}", 1, folder / "spool") as service:
        yield service.address


def test_score_tells_the_decision_and_its_reasons(trine: Any, gateway: str) -> None:
    words = ["score", *CARD, "--target", gateway]
    code, small, printed = trine(*words, "--amount", "12.34")
    assert (code, small["verdict"], small["source"]) == (0, "VERDICT_APPROVE", "SCORE_SOURCE_RULES"), printed
    assert small["features"]["amount"] == 1_234
    assert small["features"]["customer_count_1d"] == 1
    for said in ("verdict", "approve", "rules (model_down)", "customer_count_30d"):
        assert said in printed
    code, none, _ = trine(*words, "--amount", "0")
    assert (code, none["features"]["amount"], none["features"]["customer_count_1d"]) == (0, 0, 2)
    code, large, _ = trine(*words, "--amount", LARGE, "--id", "score-large")
    assert (code, large["verdict"], large["rules"]) == (0, "VERDICT_DENY", ["large"])
    code, again, printed = trine(*words, "--amount", LARGE, "--id", "score-large")
    assert (code, again["repeated_request"], again["score"]) == (0, True, large["score"])
    assert "the stored decision" in printed
    code, other, printed = trine(*words, "--amount", "1.00", "--id", "score-large")
    assert (code, other) == (3, None)
    assert "ALREADY_EXISTS" in printed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--amount", "NaN"], 2, "--amount is 'NaN'; must be a decimal number"),
        (["--amount", "12.345"], 2, "EUR has 2 digits after the point"),
        (["--amount", "-1"], 2, "must be 0 to 1000000000000 minor units"),
        (["--amount", "1e15"], 2, "must be 0 to 1000000000000 minor units"),
        (["--amount", "12.5", "--currency", "JPY"], 2, "JPY has 0 digits after the point"),
        ([], 2, "--amount"),
        (["--amount", "1", "--time", "yesterday"], 2, "--time: 'yesterday' is no day or time"),
        (["--amount", "1", "--deadline-ms", "0"], 2, "--deadline-ms"),
        (["--amount", "1", "--currency", "XXQ"], 3, "INVALID_ARGUMENT: currency: is 'XXQ'"),
        (["--amount", "1", "--id", "a b"], 3, "INVALID_ARGUMENT: transaction_id: is 'a b'"),
        (["--amount", "1", "--time", "2098-01-01"], 3, "where the stream replays the past, give --time"),
    ],
)
def test_score_refuses_by_name(trine: Any, gateway: str, words: list[str], code: int, said: str) -> None:
    found, line, printed = trine("score", *CARD, "--target", gateway, *words)
    assert (found, line) == (code, None)
    # Messages about options are wrapped in a frame.
    assert said in " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", printed).split())


def test_a_server_that_is_not_there(trine: Any, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    code, line, printed = trine("score", *CARD, "--amount", "1", "--target", nowhere)
    assert (code, line) == (4, None)
    assert f"{nowhere}: UNAVAILABLE" in printed
    monkeypatch.setattr(traffic, "_CONNECT_S", 0.5)
    code, line, printed = trine("replay", "--transactions", dataset, "--target", nowhere)
    assert (code, line) == (4, None)
    assert f"no gateway answers on {nowhere}; is `trine up` running?" in printed


def recorded(bootstrap: str) -> int:
    """Events in Kafka, once no more come: the gateway hands them over a moment after it has answered."""
    log, deadline, before = KafkaLog(bootstrap), time.monotonic() + 20, -1
    while (now := sum(log.ends("trine.transactions").values())) != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.5)  # several times as long as messages gather
    return now


def test_replay_sends_a_period_at_a_rate_and_sums_it_up(
    trine: Any, gateway: str, dataset: Path, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rich draws its bar where it believes to be on a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    start_us, end_us = (date.fromisoformat(d).toordinal() - date(1970, 1, 1).toordinal() for d in (DAY, NEXT_DAY))
    day = load_transactions(dataset, start_us * 86_400_000_000, end_us * 86_400_000_000)
    words = ["replay", "--transactions", dataset, "--from", DAY, "--to", NEXT_DAY, "--target", gateway]
    began = time.monotonic()
    kafka = ["--kafka-bootstrap", kafka_bootstrap, "--shards", SHARDS]
    code, summed, printed = trine(*words, "--rate", 60, "--deadline-ms", 5_000, *kafka)
    took_s = time.monotonic() - began
    assert code == 0, printed
    assert summed["transactions"] == summed["answered"] == day.num_rows > 40
    assert (day.num_rows - 1) / 60 <= summed["seconds"] <= took_s
    assert sum(summed["verdicts"].values()) == day.num_rows
    large = sum(amount >= 22_000 for amount in day.column("amount").to_pylist())
    assert summed["verdicts"].get("deny", 0) == large
    assert summed["sources"] == {"rules": day.num_rows}
    assert summed["fallback_reasons"] == {"model_down": day.num_rows}
    assert (summed["errors"], 0 < summed["p50_ms"] <= summed["p99_ms"]) == ({}, True)
    assert "Replaying" in printed, "progress is on stderr"
    due = load_fraud_reports(dataset, end_us * 86_400_000_000 - 1).num_rows
    due -= load_fraud_reports(dataset, start_us * 86_400_000_000 - 1).num_rows
    assert summed["fraud_reports"] == due

    ids = set(day.column("transaction_id").to_pylist())
    # Again, in batches: the gateway knows them all, and nothing is recorded twice.
    ends = recorded(kafka_bootstrap)
    code, bulk, printed = trine(*words, "--bulk")
    assert (code, bulk["answered"], bulk["verdicts"]) == (0, len(ids), summed["verdicts"]), printed
    assert bulk["fraud_reports"] == 0
    assert recorded(kafka_bootstrap) == ends
    if due:
        assert f"{due} fraud reports of the period are left out: no --kafka-bootstrap" in printed


def test_replay_says_what_got_no_decision(trine: Any, gateway: str, dataset: Path) -> None:
    first = load_transactions(dataset).column("transaction_id")[0].as_py()
    code, _, printed = trine("score", *CARD, "--amount", "1.00", "--id", first, "--target", gateway)
    assert code == 0, printed
    period = ["--to", "2018-04-02", "--deadline-ms", 5_000]
    code, summed, printed = trine("replay", "--transactions", dataset, *period, "--target", gateway)
    assert (code, summed["errors"]) == (5, {"ALREADY_EXISTS": 1})
    assert summed["answered"] == summed["transactions"] - 1 > 0
    assert "1 transactions got no decision: ALREADY_EXISTS 1; e.g." in printed


def test_replay_refuses_what_it_cannot_send(trine: Any, gateway: str, dataset: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--from", "yesterday"], "--from: 'yesterday' is no day or time"),
        (["--from", "2019-01-01", "--to", "2019-01-02"], "no transaction in"),
        (["--rate", "-1"], "--rate"),
    ):
        code, line, printed = trine("replay", "--transactions", dataset, "--target", gateway, *words)
        assert (code, line, said in printed) == (2, None, True), printed
    code, _, printed = trine("replay", "--transactions", tmp_path / "nothing", "--target", gateway)
    assert (code, "is not a dataset folder" in printed) == (3, True), printed
    (tmp_path / "transactions").mkdir()
    whole = pq.read_table(next((dataset / "transactions").glob(f"{DAY}.parquet")))
    pq.write_table(whole.drop_columns(["terminal_id"]), tmp_path / "transactions" / f"{DAY}.parquet")
    code, _, printed = trine("replay", "--transactions", tmp_path, "--target", gateway)
    assert (code, "column terminal_id (string) is missing" in printed) == (3, True), printed
