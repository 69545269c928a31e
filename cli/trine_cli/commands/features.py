"""`trine features`: compute features of past events; rebuild the live state from history."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trine_cli.errors import UsageError
from trine_cli.moments import moment_text, moment_us
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from feature_store.definitions import FeaturePlan

app = typer.Typer(help="Compute features from history; rebuild the live state.")

Transactions = Annotated[Path, typer.Option(help="Dataset folder (trine data generate, trine data import).")]
Model = Annotated[str, typer.Option(help="The model whose features these are: a folder of models/.")]


@app.command()
def compute(
    transactions: Transactions,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    model: Model = "fraud",
    from_: Annotated[str | None, typer.Option("--from", help="First event time, e.g. 2018-07-25.")] = None,
    to: Annotated[str | None, typer.Option(help="First event time no longer computed.")] = None,
    json: Json = False,
) -> None:
    """One row a transaction: its features as they were known at its own time."""
    from feature_store.offline import compute_features

    from trine_cli.parquet_file import write_parquet

    output = Output(json)
    plan = plan_of(model)
    began = time.monotonic()
    with output.progress("Computing features") as advance:
        first = None if from_ is None else moment_us(from_, "--from")
        table = compute_features(plan, transactions, first, None if to is None else moment_us(to, "--to"))
        advance(1)
    write_parquet(table, out)
    seconds = time.monotonic() - began
    output.note(f"{table.num_rows:,} rows of {len(plan.features)} features in {seconds:.1f} s: {out}")
    output.result({"rows": table.num_rows, "features": list(plan.features), "seconds": round(seconds, 3)})


@app.command()
def rebuild(
    transactions: Transactions,
    until: Annotated[str, typer.Option(help="The cut: events and labels from this time on come by the stream.")],
    redis_url: Annotated[str, typer.Option(envvar="TRINE_REDIS_URL")] = "redis://127.0.0.1:6379/0",
    model: Model = "fraud",
    shards: Annotated[int, typer.Option(min=1, help="Partitions of the topics.")] = 64,
    json: Json = False,
) -> None:
    """Make the live feature state anew from history, as a new version that is then served."""
    import redis
    from feature_store.rebuild import rebuild as rebuild_state

    output = Output(json)
    plan = plan_of(model)
    with output.progress("Writing states") as advance:
        made = rebuild_state(
            redis.Redis.from_url(redis_url), plan, transactions, moment_us(until, "--until"), shards, advance
        )
    rows = [
        (view, n, f"{made.state_bytes[view] / max(n, 1):,.0f}", f"{made.state_bytes[view] / 1e6:,.1f}")
        for view, n in made.entities.items()
    ]
    output.table(
        f"State version {made.version}, until {moment_text(made.cut_us)}, of {made.events:,} events",
        ["view", "entities", "bytes an entity", "MB"],
        rows,
    )
    output.result(
        {
            "version": made.version,
            "until": moment_text(made.cut_us),
            "events": made.events,
            "entities": made.entities,
            "state_bytes": made.state_bytes,
        }
    )


def plan_of(model: str) -> FeaturePlan:
    """The feature plan that models/<model>/features.py declares. Raises UsageError for an unknown model."""
    try:
        plan: FeaturePlan = importlib.import_module(f"models.{model}.features").PLAN
    except ModuleNotFoundError as error:
        raise UsageError(f"--model: there is no models/{model}/features.py") from error
    return plan
