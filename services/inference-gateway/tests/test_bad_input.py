"""Bad input is refused with the field's name, on gRPC, in bulk and on REST, and nothing of it is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from tests.gateway_scene import (
    SHARDS,
    START_US,
    TRANSACTIONS,
    Gateway,
    NewGateway,
    Topic,
    new_id,
    refused,
    transaction,
    wait_for,
)
from trine.scoring.v1 import scoring_pb2 as scoring
from trine_cli.local.fixtures import KeptDatabase

DAY_US = 86_400_000_000


def changed(**fields: object) -> scoring.ScoreTransactionRequest:
    request = transaction()
    for name, value in fields.items():
        if value is None:
            request.transaction.ClearField(name)  # type: ignore[arg-type]
        else:
            setattr(request.transaction, name, value)
    return request


def at(seconds: int, nanos: int = 0) -> scoring.ScoreTransactionRequest:
    request = transaction()
    request.transaction.event_time.seconds, request.transaction.event_time.nanos = seconds, nanos
    return request


BAD: dict[str, tuple[Callable[[], scoring.ScoreTransactionRequest], str]] = {
    "nothing": (lambda: scoring.ScoreTransactionRequest(), "transaction"),
    "no id": (lambda: changed(transaction_id=None), "transaction_id"),
    "id with a space": (lambda: changed(transaction_id="a b"), "transaction_id"),
    "id with a newline at its end": (lambda: changed(transaction_id="abc\n"), "transaction_id"),
    "id too long": (lambda: changed(transaction_id="x" * 65), "transaction_id"),
    "id not ASCII": (lambda: changed(transaction_id="é"), "transaction_id"),
    "no customer": (lambda: changed(customer_id=None), "customer_id"),
    "customer of a megabyte": (lambda: changed(customer_id="c" * 60_000), "customer_id"),
    "terminal with a slash": (lambda: changed(terminal_id="t/1"), "terminal_id"),
    "no amount": (lambda: changed(amount_minor=None), "amount_minor"),
    "negative amount": (lambda: changed(amount_minor=-1), "amount_minor"),
    "huge amount": (lambda: changed(amount_minor=10**12 + 1), "amount_minor"),
    "no currency": (lambda: changed(currency=None), "currency"),
    "unknown currency": (lambda: changed(currency="XXQ"), "currency"),
    "small currency": (lambda: changed(currency="eur"), "currency"),
    "no time": (lambda: changed(event_time=None), "event_time"),
    "before 1970": (lambda: at(-1), "event_time"),
    "after 2099": (lambda: at(4_102_444_800), "event_time"),
    "year 9999": (lambda: at(253_402_300_799), "event_time"),
    "nanos that are none": (lambda: at(START_US // 1_000_000, -5), "event_time"),
}


@pytest.fixture(scope="module")
def database(kept_database: KeptDatabase) -> str:
    return kept_database()


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, database: str, kafka_bootstrap: str, release: Any
) -> Iterator[Gateway]:
    """One gateway for all of this module: no test here changes anything."""
    from tests.gateway_scene import build_state

    build_state(database)
    settings = {
        "kafka_bootstrap": kafka_bootstrap, "releases": release.path.parent, "release": release.id,
        "redis_url": database, "shards": SHARDS, "torchserve_grpc": "127.0.0.1:1", "deadline_ms": 1_000,
    }  # fmt: skip
    with Gateway(tmp_path_factory.mktemp("bad-input"), settings) as gateway:
        yield gateway


def violation(error: grpc.RpcError) -> str:
    """The field in google.rpc.BadRequest."""
    trailing: Any = error.trailing_metadata()  # pairs; the stubs do not say so
    (details,) = [value for key, value in trailing if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    assert status.code == error.code().value[0]
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    return str(bad.field_violations[0].field)


@pytest.mark.parametrize("name", BAD)
def test_unary(gateway: Gateway, name: str) -> None:
    make, field = BAD[name]
    error = gateway.refusal(make())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(error) == field
    assert (error.details() or "").startswith(field)


def test_an_amount_of_0_is_an_amount_and_none_is_not(gateway: Gateway) -> None:
    assert gateway.score(transaction(amount=0)).features["amount"] == 0
    assert post(gateway, amount_minor=0).json()["features"]["amount"] == 0
    assert post(gateway, amount_minor=..., amount="0.00").json()["features"]["amount"] == 0
    assert "is missing; must be 0 to" in (gateway.refusal(changed(amount_minor=None)).details() or "")


def test_bulk_fails_the_bad_items_only(gateway: Gateway) -> None:
    good = transaction()
    items = [good, *(make() for make, _ in BAD.values()), transaction()]
    request = scoring.ScoreTransactionsRequest(transactions=[i.transaction for i in items])
    (response,) = gateway.stub.ScoreTransactions(iter([request]), timeout=10)
    first, *bad, last = response.items
    assert first.response.transaction_id == good.transaction.transaction_id
    assert last.HasField("response")
    # An empty transaction in a list cannot be told from a missing one: its first field is named.
    fields = ["transaction_id", *(field for _, field in list(BAD.values())[1:])]
    assert [item.error.field for item in bad] == fields
    assert {item.error.code for item in bad} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}


def raw(gateway: Gateway, data: bytes, method: str = "ScoreTransaction") -> grpc.RpcError:
    with grpc.insecure_channel(gateway.address) as channel:
        path = f"/trine.scoring.v1.ScoringService/{method}"
        if method == "ScoreTransaction":
            error = refused(lambda: channel.unary_unary(path, None, None)(data, timeout=5))
        else:
            error = refused(lambda: list(channel.stream_stream(path, None, None)(iter([data]), timeout=5)))
    assert error is not None
    return error


@pytest.mark.parametrize("method", ["ScoreTransaction", "ScoreTransactions"])
@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage(gateway: Gateway, method: str, data: bytes) -> None:
    error = raw(gateway, data, method)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(error) == "request"


def test_oversized(gateway: Gateway) -> None:
    large = transaction()
    large.transaction.terminal_id = "t" * 5_000_000
    error = raw(gateway, large.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation(error) == "request"
    many = scoring.ScoreTransactionsRequest(transactions=[transaction().transaction for _ in range(1_025)])
    error = raw(gateway, many.SerializeToString(), "ScoreTransactions")
    assert violation(error) == "transactions"
    assert gateway.score(transaction()).verdict, "the server is none the worse"


def test_event_times_that_the_stream_cannot_have(gateway: Gateway, database: str) -> None:
    """The shard's own clock judges, wherever the wall clock is: here both are years apart."""
    import redis
    from feature_store import keys
    from feature_store.sharding import shard_of

    customer = "clocked"  # in another shard than the one below that must have no clock
    assert shard_of(customer, SHARDS) != shard_of("clockless", SHARDS)
    with redis.Redis.from_url(database) as client:
        client.hset(keys.meta("customer", shard_of(customer, SHARDS), keys.FIRST_VERSION), "clock", START_US)
    assert gateway.score(transaction(customer=customer, at_us=START_US - DAY_US)).verdict
    assert gateway.score(transaction(customer=customer, at_us=START_US + 31 * DAY_US)).verdict
    for wrong in (START_US - DAY_US - 1, START_US + 31 * DAY_US + 1):
        error = gateway.refusal(transaction(customer=customer, at_us=wrong))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violation(error) == "event_time"


def test_a_date_that_no_clock_can_have_is_refused_where_the_shard_has_no_clock_yet(gateway: Gateway) -> None:
    now_us = time.time_ns() // 1_000
    error = gateway.refusal(transaction(customer="clockless", at_us=now_us + 31 * DAY_US + 60_000_000))
    assert violation(error) == "event_time"
    assert "in the future; must be at most 2678400 s after the gateway's clock" in (error.details() or "")
    assert gateway.score(transaction(customer="clockless", at_us=now_us + 31 * DAY_US - 60_000_000)).verdict
    assert gateway.score(transaction(customer="clockless")).verdict, "nor has it set one"


def test_live_refuses_what_the_wall_clock_cannot_have(new_gateway: NewGateway, state: str) -> None:
    gateway = new_gateway(redis_url=state, live=True)
    now_us = time.time_ns() // 1_000
    assert gateway.score(transaction(at_us=now_us)).verdict
    assert gateway.score(transaction(at_us=now_us - DAY_US + 60_000_000)).verdict
    assert gateway.score(transaction(at_us=now_us + 240_000_000)).verdict
    for wrong in (now_us - DAY_US - 60_000_000, now_us + 360_000_000, START_US):
        assert violation(gateway.refusal(transaction(at_us=wrong))) == "event_time"


def test_nothing_refused_is_recorded(gateway: Gateway, kafka_bootstrap: str) -> None:
    topic = Topic.now(kafka_bootstrap, TRANSACTIONS)
    unwanted = []
    for make, _ in BAD.values():
        request = make()
        unwanted.append(request.transaction.transaction_id)
        gateway.refusal(request)
    last = new_id()
    gateway.score(transaction(last))
    wait_for("the good one", lambda: last in {t.transaction_id for t in topic.transactions()})
    assert not {t.transaction_id for t in topic.transactions()} & set(unwanted)


# REST

GOOD = {
    "transaction_id": "", "event_time": "2018-07-25T14:03:22.120Z", "customer_id": "rest-1", "terminal_id": "t-1",
    "amount_minor": 12_345, "currency": "EUR",
}  # fmt: skip


def post(gateway: Gateway, **changes: object) -> httpx.Response:
    body = {**GOOD, "transaction_id": new_id(), **changes}
    body = {name: value for name, value in body.items() if value is not ...}
    return httpx.post(f"{gateway.http_url}/v1/transactions:score", json=body, headers={"trine-explain": "1"})


def test_rest_answers_like_grpc(gateway: Gateway) -> None:
    id_ = new_id()
    response = post(gateway, transaction_id=id_)
    assert response.status_code == 200, response.text
    body = response.json()
    request = transaction(id_, customer="rest-1", amount=12_345, at_us=1_532_527_402_120_000)
    again = gateway.score(request)
    assert again.repeated_request
    assert body["score"] == again.score
    assert body["verdict"] == scoring.Verdict.Name(again.verdict).removeprefix("VERDICT_").lower()
    assert body["features"] == dict(again.features)
    assert body["latency"]["total_us"] == again.latency.total_us
    decimal = post(gateway, amount="123.45", amount_minor=...)
    assert decimal.json()["features"]["amount"] == 12_345.0
    assert post(gateway, amount="12345", amount_minor=..., currency="JPY").json()["features"]["amount"] == 12_345.0
    assert post(gateway, transaction_id=id_, amount_minor=1).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"transaction_id": ...}, "transaction_id"),
        ({"transaction_id": "a b"}, "transaction_id"),
        ({"transaction_id": 7}, "transaction_id"),
        ({"customer_id": ""}, "customer_id"),
        ({"terminal_id": None}, "terminal_id"),
        ({"amount_minor": ...}, "amount_minor"),
        ({"amount_minor": None}, "amount_minor"),
        ({"amount_minor": -5}, "amount_minor"),
        ({"amount_minor": 12.5}, "amount_minor"),
        ({"amount_minor": "12"}, "amount_minor"),
        ({"amount_minor": True}, "amount_minor"),
        ({"amount_minor": 10**13}, "amount_minor"),
        ({"amount_minor": 10**30}, "amount_minor"),
        ({"amount_minor": 1, "amount": "1.00"}, "amount_minor"),
        ({"amount_minor": ..., "amount": "1.234"}, "amount"),
        ({"amount_minor": ..., "amount": "NaN"}, "amount"),
        ({"amount_minor": ..., "amount": "Infinity"}, "amount"),
        ({"amount_minor": ..., "amount": "1e400"}, "amount"),
        ({"amount_minor": ..., "amount": "1e999999999"}, "amount"),
        ({"amount_minor": ..., "amount": "-3"}, "amount"),
        ({"amount_minor": ..., "amount": "twelve"}, "amount"),
        ({"amount_minor": ..., "amount": 12.34}, "amount"),
        ({"currency": "XXQ"}, "currency"),
        ({"event_time": "yesterday"}, "event_time"),
        ({"event_time": "2018-07-25T14:03:22"}, "event_time"),
        ({"event_time": "9999-12-31T00:00:00Z"}, "event_time"),
        ({"event_time": "0001-01-01T00:00:00Z"}, "event_time"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_rest_names_the_field(gateway: Gateway, changes: dict[str, object], field: str) -> None:
    response = post(gateway, **changes)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["field"] == field
    assert response.json()["status"] == 422


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"amount_minor": NaN}', b'"' + b"x" * 20_000 + b'"', b"[" * 10_000],
)
def test_rest_garbage(gateway: Gateway, content: bytes) -> None:
    url = f"{gateway.http_url}/v1/transactions:score"
    response = httpx.post(url, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["field"]


def test_openapi_page_and_health(gateway: Gateway) -> None:
    base = gateway.http_url
    schema = httpx.get(f"{base}/openapi.json").json()
    assert "/v1/transactions:score" in schema["paths"]
    assert httpx.get(f"{base}/docs").status_code == 200
    assert httpx.get(f"{base}/livez").status_code == 200
    assert httpx.get(f"{base}/readyz").json()["ready"]
    assert "trine_gateway_decisions_total" in httpx.get(f"{base}/metrics").text
    missing = httpx.get(f"{base}/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
