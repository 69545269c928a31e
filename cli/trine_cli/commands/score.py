"""`trine score`: one transaction to the gateway, and the decision with what it was made of."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

import typer

from trine_cli.errors import BadInput, Unavailable, UsageError
from trine_cli.moments import moment_us
from trine_cli.output import Json, Output


def command(
    customer: Annotated[str, typer.Option(help="Customer id.")],
    terminal: Annotated[str, typer.Option(help="Terminal id.")],
    amount: Annotated[str, typer.Option(help="As on the receipt, e.g. 123.45.")],
    currency: Annotated[str, typer.Option(help="ISO 4217.")] = "EUR",
    time_: Annotated[
        str | None, typer.Option("--time", help="Event time, e.g. 2018-07-25T14:03:22Z; now where not given.")
    ] = None,
    id_: Annotated[str | None, typer.Option("--id", help="Transaction id; a new one where not given.")] = None,
    target: Annotated[
        str, typer.Option(envvar="TRINE_GATEWAY", help="HOST:PORT of the gateway's gRPC.")
    ] = "127.0.0.1:50051",
    deadline_ms: Annotated[float, typer.Option(min=1, help="The call's deadline.")] = 1_000.0,
    json: Json = False,
) -> None:
    """Send one transaction and show the decision, the features behind it and where the time went."""
    import grpc
    from google.protobuf.json_format import MessageToDict
    from inference_gateway.money import minor_units
    from trine.scoring.v1 import scoring_pb2, scoring_pb2_grpc

    from trine_cli.decision_words import source_of, verdict_of

    try:
        minor = minor_units(amount, currency)
    except ValueError as error:
        raise UsageError(f"--amount {error}") from error
    at_us = time.time_ns() // 1_000 if time_ is None else moment_us(time_, "--time")
    transaction = scoring_pb2.Transaction(
        transaction_id=id_ or f"cli-{secrets.token_hex(8)}",
        customer_id=customer,
        terminal_id=terminal,
        amount_minor=minor,
        currency=currency,
    )
    transaction.event_time.FromMicroseconds(at_us)
    output = Output(json)
    with grpc.insecure_channel(target) as channel:
        stub = scoring_pb2_grpc.ScoringServiceStub(channel)
        request = scoring_pb2.ScoreTransactionRequest(transaction=transaction)
        began = time.perf_counter()
        try:
            found = stub.ScoreTransaction(request, timeout=deadline_ms / 1_000, metadata=(("trine-explain", "1"),))
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS):
                hint = "; where the stream replays the past, give --time" if "event_time" in reason else ""
                raise BadInput(reason + hint) from error
            raise Unavailable(f"{target}: {reason}") from error
        took_ms = (time.perf_counter() - began) * 1e3
    rows: list[tuple[str, object]] = [
        ("verdict", verdict_of(found)),
        ("score", f"{found.score:.6f}"),
        ("source", source_of(found) + (f" ({found.fallback_reason})" if found.fallback_reason else "")),
        ("release", found.release),
        ("feature lag", f"{found.feature_lag_ms:,} ms"),
        ("new", ", ".join(found.new_entities) or "-"),
        ("took", f"{took_ms:.1f} ms, {found.latency.total_us / 1e3:.1f} ms of it in the gateway"),
    ]
    if found.repeated_request:
        rows.append(("repeated", "the stored decision of an earlier, equal request"))
    if found.rules:
        rows.append(("rules", ", ".join(found.rules)))
    output.table(f"Transaction {found.transaction_id}", ["what", "value"], rows)
    output.table("Features", ["feature", "value"], [(n, f"{v:,.6g}") for n, v in sorted(found.features.items())])
    output.result(MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
