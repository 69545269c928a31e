"""`trine features`: compute features of past events; rebuild the live state from history."""

from __future__ import annotations

import importlib
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trine_cli.errors import UsageError
from trine_cli.moments import moment_text, moment_us
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    import redis
    from feature_store.definitions import FeaturePlan
    from feature_store.spark_rebuild import OnSpark

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
    transactions: Annotated[str, typer.Option(help="Dataset folder, or warehouse (folder or s3://…).")],
    until: Annotated[
        str | None,
        typer.Option(
            help="The cut: events and labels from this time on come by the stream. Left out: the archive up to its end."
        ),
    ] = None,
    redis_url: Annotated[str, typer.Option(envvar="TRINE_REDIS_URL")] = "redis://127.0.0.1:6379/0",
    kafka_bootstrap: Annotated[
        str | None, typer.Option(envvar="TRINE_KAFKA_BOOTSTRAP", help="Needed without --until: where the archive ends.")
    ] = None,
    group_prefix: Annotated[str, typer.Option(help="Prefix of the worker's consumer groups.")] = "trine",
    model: Model = "fraud",
    releases: Annotated[
        Path | None,
        typer.Option(envvar="TRINE_RELEASES", help="Also the views of this folder's releases, in use or staged."),
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Partitions of the topics.")] = 64,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Without Spark, in this process's memory: some millions of events.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that workers have to bring it up to date.")] = 600.0,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Serve it before workers have brought it up to date; features lag then.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the live feature state anew from history, as a new version that is served once it is up to date.

    Where workers run, they follow the logs for the new version too while the old one is served; one pointer moves when
    the new one has caught up. Where none has ever run, it is served as it is. Brokers that ask for TLS or SASL:
    TRINE_KAFKA_SECURITY_PROTOCOL, TRINE_KAFKA_SASL_PASSWORD and so on, as the services have them.
    """
    import redis
    from feature_store.log_positions import archived_logs
    from feature_store.rebuild import rebuild as rebuild_state

    from trine_cli.kafka_access import KafkaAccess

    output = Output(json)
    client = redis.Redis.from_url(redis_url)
    plan = plan_to_rebuild(model, releases, client)
    until_us = None if until is None else moment_us(until, "--until")
    if until_us is None and kafka_bootstrap is None:
        raise UsageError("--until or --kafka-bootstrap: a cut, or where to ask what the archive ends at")
    with ExitStack() as owned, output.progress("Writing states") as advance:
        logs = None
        if until_us is None and kafka_bootstrap is not None:
            logs = archived_logs(kafka_bootstrap, plan, shards, group_prefix, client=KafkaAccess().kafka_client)
        made = rebuild_state(
            client,
            plan,
            transactions,
            until_us,
            shards,
            advance,
            build=None if in_process else _on_spark(owned, redis_url, transactions),
            logs=logs,
            wait_s=wait,
            at_once=at_once,
        )
    cut = "the archive's end" if made.cut_us is None else moment_text(made.cut_us)
    rows = [
        (view, n, f"{made.state_bytes[view] / max(n, 1):,.0f}", f"{made.state_bytes[view] / 1e6:,.1f}")
        for view, n in made.entities.items()
    ]
    output.table(
        f"State version {made.version}, until {cut}, of {made.events:,} events",
        ["view", "entities", "bytes an entity", "MB"],
        rows,
    )
    output.result(
        {
            "version": made.version,
            "until": None if made.cut_us is None else moment_text(made.cut_us),
            "events": made.events,
            "entities": made.entities,
            "state_bytes": made.state_bytes,
        }
    )


def _on_spark(owned: ExitStack, redis_url: str, warehouse: str) -> OnSpark:
    """A session of this command's own, ended with `owned`."""
    from feature_store.spark_rebuild import OnSpark
    from feature_store.spark_session import spark_session
    from feature_store.warehouse import Warehouse

    folder = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="trine-spark-")))
    spark = spark_session("trine features rebuild", folder)
    owned.callback(spark.stop)
    return OnSpark(spark, redis_url, Warehouse(warehouse))


def plan_to_rebuild(model: str, releases: Path | None, client: redis.Redis) -> FeaturePlan:
    """The model's views, with a folder also its releases'. Raises UsageError where one in use would lose some."""
    from feature_store.plan_union import fingerprints, united
    from model_release.kept_plan import first_release, kept_plan
    from model_release.rollout_store import RolloutStore

    store = RolloutStore(client)
    pointer = store.read(model)
    if releases is not None:
        return united(kept_plan(releases, first_release(releases), pointer), plan_of(model))
    plan = plan_of(model)
    has = fingerprints(plan)
    for release in pointer.releases if pointer is not None else ():
        needs = {n: f for r in store.reports(model) for n, f in r.needs.get(release, {}).items()}
        if missing := sorted(n for n, found in needs.items() if has.get(n) != found):
            raise UsageError(
                f"{release} is in use and reads {', '.join(missing)}, which models/{model}/features.py does not declare"
                " so: give --releases, the folder that has it"
            )
    return plan


def plan_of(model: str) -> FeaturePlan:
    """The feature plan that models/<model>/features.py declares. Raises UsageError for an unknown model."""
    try:
        plan: FeaturePlan = importlib.import_module(f"models.{model}.features").PLAN
    except ModuleNotFoundError as error:
        raise UsageError(f"--model: there is no models/{model}/features.py") from error
    return plan
