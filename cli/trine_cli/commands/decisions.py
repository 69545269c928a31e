"""`trine decisions replay`: every recorded decision computed again from archived events, and compared to the bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trine_cli.errors import CommandError, UsageError
from trine_cli.moments import moment_us
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from batch_scorer.outcome import Report

app = typer.Typer(help="Replay recorded decisions from the archive, bit for bit.")


class DecisionsDiffer(CommandError):
    """A replay found decisions that the archive does not give."""

    exit_code = 5


@app.callback()
def _decisions() -> None:
    """A group also while it has one command."""


@app.command()
def replay(
    releases: Annotated[Path, typer.Option(help="Folder of releases; the decisions say which one they need.")],
    warehouse: Annotated[
        str | None,
        typer.Option(envvar="TRINE_WAREHOUSE", help="Folder or URI of the warehouse to read; also for runs."),
    ] = None,
    kafka_bootstrap: Annotated[
        str | None, typer.Option(help="Read this Kafka's topics instead (HOST:PORT), if it has forgotten nothing.")
    ] = None,
    transactions: Annotated[
        Path | None, typer.Option(help="The dataset that `trine features rebuild` made the state of, if it did.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The cut of that rebuild: rows before it were part of it.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="First event time, e.g. 2018-07-25.")] = None,
    to: Annotated[str | None, typer.Option(help="First event time no longer replayed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write: one row a decision.")] = None,
    json: Json = False,
) -> None:
    """Recompute vector, score and verdict of every decision record from archived events alone, never from Redis.

    Says equal or different for each, nothing else: what cannot be found is different, with the reason. Exit code 5
    where any is different.
    """
    from batch_scorer.run_risks import RunRisks

    from trine_cli.decision_replay import replay_decisions, write_outcomes
    from trine_cli.kafka_archive import KafkaArchive
    from trine_cli.warehouse_archive import WarehouseArchive

    if kafka_bootstrap is None and warehouse is None:
        raise UsageError("--warehouse FOLDER or URI is needed: what the worker's role archive fills")
    if (transactions is None) != (until is None):
        raise UsageError("--transactions and --until go together: the history of a rebuilt state, and its cut")
    output = Output(json)
    began = time.monotonic()
    with output.progress("Reading the archive, replaying decisions") as advance:

        def read(_: str, rows: int) -> None:
            advance(rows)

        archive = WarehouseArchive(warehouse or "", read)
        report, found = replay_decisions(
            archive if kafka_bootstrap is None else KafkaArchive(kafka_bootstrap, read),
            releases,
            base=None if transactions is None or until is None else (transactions, moment_us(until, "--until")),
            from_us=None if from_ is None else moment_us(from_, "--from"),
            to_us=None if to is None else moment_us(to, "--to"),
            runs=None if warehouse is None else RunRisks.below(warehouse),
        )
    seconds = time.monotonic() - began
    if out is not None:
        write_outcomes(found, out)
    show(output, report, seconds)
    output.result(summary(report, seconds))
    if report.different:
        raise DecisionsDiffer(f"{report.different:,} of {report.decisions:,} decisions are different")


def show(output: Output, report: Report, seconds: float) -> None:
    """The report as tables for people."""
    lag = report.lag_percentiles()
    rows: list[tuple[str, object]] = [
        ("decisions replayed", f"{report.decisions:,}"),
        ("equal", f"{report.equal:,}"),
        ("different", f"{report.different:,}"),
        *((f"by {source}", f"{n:,}") for source, n in report.sources.most_common()),
        *((f"verdict {verdict}", f"{n:,}") for verdict, n in report.verdicts.most_common()),
        *((f"feature lag {name}, ms", f"{ms:,}") for name, ms in lag.items()),
        ("records that came twice", f"{report.repeated:,}"),
    ]
    output.table(f"Replay from the archive, {seconds:.1f} s", ["what", "number"], rows)
    if report.different:
        output.table("What differs", ["field", "decisions"], [(f, f"{n:,}") for f, n in report.fields.most_common()])
        for replayed in report.examples:
            for difference in replayed.differences[:4]:
                output.note(f"{replayed.decision_id}: {difference}")


def summary(report: Report, seconds: float) -> dict[str, object]:
    """The report as `--json` prints it."""
    return {
        "decisions": report.decisions,
        "equal": report.equal,
        "different": report.different,
        "repeated": report.repeated,
        "sources": dict(report.sources),
        "verdicts": dict(report.verdicts),
        "releases": dict(report.releases),
        "feature_lag_ms": report.lag_percentiles(),
        "different_fields": dict(report.fields),
        "examples": [{"decision": r.decision_id, "differs": [str(d) for d in r.differences]} for r in report.examples],
        "seconds": round(seconds, 3),
    }
