"""`trine replay`: a dataset's transactions to the gateway as they happened, with the fraud reports of the period."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from trine_cli.errors import CommandError, UsageError
from trine_cli.moments import moment_us
from trine_cli.output import Json, Output


class Unanswered(CommandError):
    """Some transactions got no decision."""

    exit_code = 5


def command(
    transactions: Annotated[Path, typer.Option(help="Dataset folder (trine data generate, trine data import).")],
    from_: Annotated[str | None, typer.Option("--from", help="First event time, e.g. 2018-07-25.")] = None,
    to: Annotated[str | None, typer.Option(help="First event time no longer sent.")] = None,
    rate: Annotated[float, typer.Option(min=0, help="Transactions a second; 0: as fast as answers come.")] = 0.0,
    bulk: Annotated[bool, typer.Option("--bulk", help="By the stream of batches instead of single calls.")] = False,
    target: Annotated[
        str, typer.Option(envvar="TRINE_GATEWAY", help="HOST:PORT of the gateway's gRPC.")
    ] = "127.0.0.1:50051",
    kafka_bootstrap: Annotated[
        str | None,
        typer.Option(envvar="TRINE_KAFKA_BOOTSTRAP", help="Where the period's fraud reports go; left out otherwise."),
    ] = None,
    shards: Annotated[int, typer.Option(min=1, max=4096, help="Partitions of the topics.")] = 64,
    in_flight: Annotated[int, typer.Option(min=1, max=10_000, help="Calls in flight at most.")] = 256,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Deadline of each single call.")] = 100.0,
    json: Json = False,
) -> None:
    """Send transactions in the order of their event times and sum up the answers. Exit code 5 where one got none."""
    import numpy as np

    from trine_cli.decision_words import source_of, verdict_of
    from trine_cli.traffic import SendOptions, load_traffic, send

    output = Output(json)
    first = None if from_ is None else moment_us(from_, "--from")
    traffic = load_traffic(transactions, first, None if to is None else moment_us(to, "--to"))
    if len(traffic) == 0:
        raise UsageError(f"--from {from_} --to {to}: no transaction in {transactions} in that time")
    if kafka_bootstrap is None and traffic.reports:
        output.note(f"{len(traffic.reports):,} fraud reports of the period are left out: no --kafka-bootstrap")
    options = SendOptions(target, rate, bulk, in_flight, 256, deadline_ms / 1_000, kafka_bootstrap, shards)
    verdicts: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    latency_s: list[float] = []
    example = ""
    began = time.perf_counter()
    with output.progress("Replaying", total=len(traffic)) as advance:
        for reply in send(traffic, options):
            if reply.response is None:
                errors[reply.error] += 1
                example = example or reply.detail
            else:
                latency_s.append(reply.latency_s)
                verdicts[verdict_of(reply.response)] += 1
                sources[source_of(reply.response)] += 1
                if reply.response.fallback_reason:
                    reasons[reply.response.fallback_reason] += 1
            advance(1)
    seconds = time.perf_counter() - began
    p50, p99 = (np.percentile(np.array(latency_s or [0.0]), (50, 99)) * 1e3).round(3).tolist()
    answered = sum(verdicts.values())
    reports = len(traffic.reports) if kafka_bootstrap else 0
    output.table(
        "Replay",
        ["what", "value"],
        [
            ("transactions", f"{len(traffic):,}"),
            ("a second", f"{len(traffic) / seconds:,.0f}"),
            ("latency p50, p99" + (" of a batch" if bulk else ""), f"{p50:.1f} ms, {p99:.1f} ms"),
            ("decisions", _counts(verdicts)),
            ("sources", _counts(sources)),
            ("without the model because of", _counts(reasons)),
            ("fraud reports", f"{reports:,}"),
            ("without an answer", _counts(errors)),
        ],
    )
    output.result(
        {
            "transactions": len(traffic), "answered": answered, "seconds": round(seconds, 3),
            "per_second": round(len(traffic) / seconds, 1), "p50_ms": p50, "p99_ms": p99, "verdicts": dict(verdicts),
            "sources": dict(sources), "fallback_reasons": dict(reasons), "fraud_reports": reports,
            "errors": dict(errors),
        }
    )  # fmt: skip
    if errors:
        raise Unanswered(f"{sum(errors.values()):,} transactions got no decision: {_counts(errors)}; e.g. {example}")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "-"
