"""REST over the same scorer: POST /v1/transactions:score, its OpenAPI page, errors as problem+json (RFC 9457)."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, StrictStr
from service_kit.health import Health
from service_kit.http_server import health_router
from service_kit.metrics import Metrics
from service_kit.problems import ProblemBody, answer_with_problems, problem
from trine.scoring.v1 import scoring_pb2 as scoring

from inference_gateway.errors import GatewayError, InvalidRequest, NotRecorded, PayloadConflict
from inference_gateway.money import minor_units
from inference_gateway.scorer import Scorer
from inference_gateway.transaction_adapter import REPEATED
from inference_gateway.work import Answer

MAX_BODY_BYTES = 16_384
_STATUSES = {InvalidRequest: 422, PayloadConflict: 409, NotRecorded: 503}


class TransactionBody(BaseModel):
    """Amount: either `amount_minor` (cents) or `amount`, a decimal text with no more digits than the currency has."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "transaction_id": "tx-20180725-000017",
                    "event_time": "2018-07-25T14:03:22.120Z",
                    "customer_id": "4711",
                    "terminal_id": "812",
                    "amount_minor": 12345,
                    "currency": "EUR",
                }
            ]
        },
    )

    transaction_id: Annotated[StrictStr, Field(description="1 to 64 of A-Z a-z 0-9 . _ : -; the idempotency key")]
    event_time: Annotated[AwareDatetime, Field(description="RFC 3339, with its offset from UTC")]
    customer_id: StrictStr
    terminal_id: StrictStr
    amount_minor: Annotated[StrictInt | None, Field(description="Minor units (cents), 0 to 10^12")] = None
    amount: Annotated[StrictStr | None, Field(description='Decimal text, e.g. "123.45"', examples=[None])] = None
    currency: Annotated[StrictStr, Field(description="ISO 4217")]


class LatencyBody(BaseModel):
    """Microseconds by stage."""

    queue_us: int
    features_us: int
    model_us: int
    record_us: int
    total_us: int


class DecisionBody(BaseModel):
    """The same as trine.scoring.v1.ScoreTransactionResponse."""

    transaction_id: str
    verdict: Annotated[str, Field(examples=["approve"], description="approve, review or deny")]
    score: Annotated[float, Field(description="Calibrated probability of fraud")]
    release: str
    source: Annotated[str, Field(examples=["model"], description="model, batch_score or rules")]
    feature_lag_ms: int
    latency: LatencyBody
    features: dict[str, float]
    new_entities: list[str]
    rules: list[str]
    fallback_reason: str
    repeated_request: bool
    batch_run: Annotated[str, Field(description="The batch run that took part, where source is batch_score")]
    batch_stale: Annotated[bool, Field(description="Its cut-off is older than its job allows")]


def build_app(scorer: Scorer, health: Health, metrics: Metrics) -> FastAPI:
    """The REST app: scoring, OpenAPI page at /docs, /livez, /readyz, /metrics."""
    app = FastAPI(title="Trine inference gateway", version="1", redoc_url=None)
    app.include_router(health_router(health, metrics))

    answer_with_problems(app, MAX_BODY_BYTES)

    @app.post(
        "/v1/transactions:score",
        response_model=DecisionBody,
        summary="Decide one transaction",
        responses={code: {"model": ProblemBody, "description": text} for code, text in _RESPONSES.items()},
        tags=["scoring"],
    )
    async def score(
        body: TransactionBody,
        trine_explain: Annotated[str, Header(description="1: with the features the model got")] = "",
        trine_deadline_ms: Annotated[float | None, Header(gt=0, description="Answer within; default 100")] = None,
    ) -> Response:
        try:
            request = scorer.adapter.request(_message(body))
        except InvalidRequest as error:
            return _refusal(scorer, error)
        job = scorer.submit((request,), None if trine_deadline_ms is None else trine_deadline_ms / 1_000)
        await job.done
        outcome = job.outcomes[0]
        if not isinstance(outcome, Answer):
            failure = outcome if outcome is not None else GatewayError("no outcome")
            return problem(_STATUSES.get(type(failure), 500), failure.message, failure.field)
        data = outcome.response + REPEATED if outcome.repeated else outcome.response
        if trine_explain == "1":
            data = scorer.adapter.explained(data, outcome.vector)
        return JSONResponse(_body(scoring.ScoreTransactionResponse.FromString(data)))

    return app


_RESPONSES = {
    409: "The id was used before with another payload",
    422: "A field is wrong; `field` names it",
    503: "The transaction could be recorded nowhere",
}


def _refusal(scorer: Scorer, error: InvalidRequest) -> Response:
    scorer.submit((error,), None)
    return problem(422, error.message, error.field)


def _message(body: TransactionBody) -> scoring.Transaction:
    """Raises InvalidRequest."""
    message = scoring.Transaction(
        transaction_id=body.transaction_id,
        customer_id=body.customer_id,
        terminal_id=body.terminal_id,
        currency=body.currency,
    )
    minor = _minor(body)
    if not -(2**63) <= minor < 2**63:
        raise InvalidRequest("amount_minor" if body.amount is None else "amount", f"is {minor}; must be 0 to 10^12")
    message.amount_minor = minor
    _set_time(message, body.event_time)
    return message


def _minor(body: TransactionBody) -> int:
    if (body.amount_minor is None) == (body.amount is None):
        raise InvalidRequest("amount_minor", "exactly one of amount_minor and amount must be given")
    if body.amount is None:
        return body.amount_minor or 0
    try:
        return minor_units(body.amount, body.currency)
    except ValueError as error:
        raise InvalidRequest("amount", str(error)) from error


def _set_time(message: scoring.Transaction, at: datetime) -> None:
    try:
        message.event_time.FromDatetime(at)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("event_time", f"is {at}; must be a time of the years 1970 to 2099") from error


def _body(m: scoring.ScoreTransactionResponse) -> dict[str, Any]:  # JSON
    return {
        "transaction_id": m.transaction_id,
        "verdict": scoring.Verdict.Name(m.verdict).removeprefix("VERDICT_").lower(),
        "score": m.score,
        "release": m.release,
        "source": scoring.ScoreSource.Name(m.source).removeprefix("SCORE_SOURCE_").lower(),
        "feature_lag_ms": m.feature_lag_ms,
        "latency": {n: getattr(m.latency, n) for n in ("queue_us", "features_us", "model_us", "record_us", "total_us")},
        "features": dict(m.features),
        "new_entities": list(m.new_entities),
        "rules": list(m.rules),
        "fallback_reason": m.fallback_reason,
        "repeated_request": m.repeated_request,
        "batch_run": m.batch_run,
        "batch_stale": m.batch_stale,
    }
