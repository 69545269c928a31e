"""`trine batch`: run a job for a cut-off, list runs, roll back, read a prediction, remove what is not needed."""

from __future__ import annotations

import importlib
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trine_cli.errors import UsageError
from trine_cli.moments import moment_text, moment_us
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from batch_scorer.history import Manifest
    from batch_scorer.job import BatchJob
    from batch_scorer.runs import Run
    from batch_scorer.settings import BatchSettings

app = typer.Typer(help="Score everyone, publish all at once, read, roll back.")

RedisUrl = Annotated[str, typer.Option(envvar="TRINE_REDIS_URL", help="Where predictions are published.")]
LOCAL = "redis://127.0.0.1:6379/0"


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="A job's name: JOB of a models/NAME/batch_*.py.")],
    cutoff: Annotated[str, typer.Option(help="Events before it count, e.g. 2018-08-08.")],
    warehouse: Annotated[str, typer.Option(help="Folder or s3:// of the warehouse.")],
    releases: Annotated[Path, typer.Option(help="Folder of releases.")],
    release: Annotated[str, typer.Option(help="Which of them; else the promoted one, else the newest.")] = "",
    redis_url: RedisUrl = LOCAL,
    master: Annotated[str, typer.Option(help="Spark master.")] = "local[*]",
    job_module: Annotated[str, typer.Option(help="A module of your own with a JOB, instead of models/.")] = "",
    force: Annotated[str, typer.Option(metavar="REASON", help="Publish whatever the checks say; recorded.")] = "",
    json: Json = False,
) -> None:
    """Score, check and publish one run. Until it is whole, and if it fails, the run before is served.

    Exit codes: 0 published; 3 bad input; 4 something is unavailable, try again; 5 checks failed, kept and not
    published; 6 a newer run is published; 75 another run is at work.
    """
    from batch_scorer.progress import StageLines
    from batch_scorer.runner import run_job
    from feature_store.warehouse_store import WarehouseStore
    from service_kit import logs

    output = Output(json)
    logs.configure("batch", "warning")
    found = job_named(job, job_module)
    options: dict[str, Any] = {
        "redis_url": redis_url, "warehouse": warehouse, "releases": releases, "release": release, "master": master,
    }  # fmt: skip
    lines = StageLines(found.name, output.stderr)
    try:
        manifest = run_job(found, moment_us(cutoff, "--cutoff"), settings(**options), force=force, watcher=lines)
    finally:
        lines.close()
    seconds = sum(manifest.seconds.values())
    output.note(
        f"published {manifest.run}: {manifest.rows:,} rows in {seconds:.1f} s"
        + (f", in place of {manifest.previous}" if manifest.previous else "")
    )
    for check in manifest.failed:
        output.note(f"forced past {check.name}: {check.detail}")
    report = WarehouseStore(warehouse).shown(f"runs/{manifest.job}/{manifest.run}/report.html")
    output.note(f"report: {report}")
    output.result(as_json(manifest))


@app.command()
def runs(
    job: Annotated[str, typer.Argument(help="Of this job; of all without it.")] = "",
    redis_url: RedisUrl = LOCAL,
    json: Json = False,
) -> None:
    """Runs whose rows are in Redis: the published one and those to roll back to."""
    output = Output(json)
    registry = registry_at(redis_url)
    found: list[dict[str, object]] = []
    for name in [job] if job else registry.jobs():
        current = registry.current(name)
        at_work = registry.at_work(name)
        for one in registry.runs(name).values():
            state = state_of(one, current, at_work)
            found.append(
                {
                    "job": name, "run": one.run, "state": state, "cutoff": moment_text(one.cutoff_us),
                    "release": one.release, "rows": one.rows, "blocks": one.blocks, "forced": one.forced,
                    "published": moment_text(one.published_us) if one.published_us else None, "who": one.who,
                }
            )  # fmt: skip
    columns = ["run", "state", "cutoff", "release", "rows", "published", "forced"]
    output.table("Runs", columns, [[_cell(row[name]) for name in columns] for row in found])
    output.result({"runs": found})


@app.command()
def rollback(
    job: Annotated[str, typer.Argument(help="Whose predictions go back.")],
    to: Annotated[str, typer.Option(help="The run to serve; without it the one that the current run replaced.")] = "",
    redis_url: RedisUrl = LOCAL,
    json: Json = False,
) -> None:
    """Serve an earlier run again, at once and whole."""
    output = Output(json)
    before, now = registry_at(redis_url).roll_back(job, to, settings().superseded_s)
    output.note(f"{now.run} is served in place of {before.run}")
    output.result({"job": job, "run": now.run, "before": before.run, "cutoff": moment_text(now.cutoff_us)})


@app.command()
def prune(
    warehouse: Annotated[str, typer.Option(help="The warehouse, to remove folders of killed runs; or none.")] = "",
    redis_url: RedisUrl = LOCAL,
    json: Json = False,
) -> None:
    """Remove what killed, refused and expired runs left behind. What is served or can be rolled back to stays."""
    from batch_scorer.pruning import prune as prune_runs
    from feature_store.warehouse import Warehouse

    output = Output(json)
    store = Warehouse(warehouse).store if warehouse else None
    pruned = prune_runs(registry_at(redis_url), settings(), store)
    names = {"redis": pruned.redis, "expired": pruned.expired, "warehouse": pruned.warehouse, "scratch": pruned.scratch}
    for kind, found in names.items():
        for name in found:
            output.note(f"removed {name} ({kind})")
    if not any(names.values()):
        output.note("nothing to remove")
    output.result(names)


@app.command()
def read(
    job: Annotated[str, typer.Argument(help="Whose prediction.")],
    keys: Annotated[list[str], typer.Argument(help="Of these keys, all from one run.")],
    redis_url: RedisUrl = LOCAL,
    json: Json = False,
) -> None:
    """Read predictions as they are published now, with their run and its age."""
    import redis
    from batch_scorer.predictions import Predictions, freshness

    output = Output(json)
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        found = Predictions(client).read(job, keys)
    run, age = found.run, freshness(found.run, time.time_ns() // 1_000)
    output.table(
        f"{run.run}, release {run.release}, {age.age_s / 3_600:,.1f} h old{', STALE' if age.stale else ''}",
        ["key", *(o.name for o in run.outputs)],
        [
            [key, *(_cell(values[o.name]) if values else "unknown" for o in run.outputs)]
            for key, values in zip(keys, found.values, strict=True)
        ],
    )
    output.result(
        {
            "job": job, "run": run.run, "cutoff": moment_text(run.cutoff_us), "release": run.release,
            "age_s": round(age.age_s, 3), "stale": age.stale,
            "predictions": dict(zip(keys, found.values, strict=True)),
        }
    )  # fmt: skip
    if all(values is None for values in found.values):
        raise UsageError(f"job {job}: run {run.run} has no key {', '.join(keys)}")


def job_named(name: str, module: str = "") -> BatchJob:
    """The job called so among models/<name>/batch_*.py, or in the module given. Raises UsageError, JobError."""
    from batch_scorer.main import job_in

    modules = [module] if module else job_modules()
    found = {job.name: job for job in map(job_in, modules)}
    if name not in found:
        raise UsageError(f"no job {name!r}; there are {', '.join(sorted(found)) or 'none'}")
    return found[name]


def job_modules() -> list[str]:
    """Modules of the installed models that declare a job."""
    models = importlib.util.find_spec("models")
    folders = [Path(path) for path in (models.submodule_search_locations or [])] if models is not None else []
    return sorted(
        f"models.{path.parent.name}.{path.stem}" for folder in folders for path in folder.glob("*/batch_*.py")
    )


def settings(**options: object) -> BatchSettings:
    """TRINE_BATCH_* with options on top. Raises SettingsError."""
    from batch_scorer.settings import BatchSettings
    from service_kit.settings import load

    return load(BatchSettings).model_copy(update=options)


def registry_at(url: str) -> Any:  # a batch_scorer.registry.Registry, imported when needed
    import redis
    from batch_scorer.registry import Registry

    return Registry(redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5))


def state_of(run: Run, current: Run | None, at_work: str) -> str:
    """`published`, `writing` (at work), `unfinished` (killed), `superseded`."""
    if current is not None and run.run == current.run:
        return "published"
    if run.state == "writing":
        return "writing" if run.run == at_work else "unfinished"
    return "superseded"


def as_json(manifest: Manifest) -> dict[str, object]:
    """What `--json` prints of a run."""
    kept = ("run", "job", "release", "generation", "outcome", "forced", "previous", "population", "rows", "blocks",
            "redis_bytes", "paused_s", "seconds", "stage_rows")  # fmt: skip
    return manifest.model_dump(mode="json", include=set(kept)) | {
        "cutoff": moment_text(manifest.cutoff_us),
        "checks": [check.model_dump() for check in manifest.checks],
    }


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        shown = [f"{v['item']} {v['score']:.3f}" if isinstance(v, dict) else f"{v:.3f}" for v in value[:5]]
        return ", ".join(shown) + (f", ... ({len(value)})" if len(value) > 5 else "")
    return "" if value is None else str(value)
