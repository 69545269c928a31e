"""`trine release`: what releases there are, whether one is intact, and which of them serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trine_cli.errors import BadInput
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from model_release import Release
    from model_release.rollout import Pointer
    from model_release.rollout_store import RolloutStore

    from trine_cli.rollout import Moved

app = typer.Typer(help="List, show and verify releases; promote one, roll back, see which serves.")

Folder = Annotated[Path, typer.Argument(help="Release folder.")]
Model = Annotated[str, typer.Argument(help="The model, e.g. fraud.")]
RedisUrl = Annotated[str, typer.Option(envvar="TRINE_REDIS_URL", help="The Redis that gateways and workers use.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to see every gateway follow.")]
LOCAL = "redis://127.0.0.1:6379/0"


@app.command("list")
def list_(
    releases: Annotated[Path, typer.Option(help="Folder of releases.")] = Path("releases"), json: Json = False
) -> None:
    """The releases in a folder, verified; a damaged one is shown with what is wrong."""
    from model_release import ReleaseError, list_releases, open_release

    output = Output(json)
    if not releases.is_dir():
        raise BadInput(f"--releases: {releases} is not a folder; `trine train fraud` makes one")
    found: list[dict[str, Any]] = []
    for path in list_releases(releases):
        try:
            manifest = open_release(path, None).manifest
        except ReleaseError as error:
            found.append({"release": path.name, "created_at": None, "test": None, "error": str(error)})
        else:
            test = manifest.metrics.get("test")
            found.append({"release": manifest.release, "created_at": manifest.created_at, "test": test, "error": None})
    output.table(
        str(releases),
        ["release", "created", "quality on test", "state"],
        [
            [
                item["release"],
                item["created_at"] or "",
                _quality(item["test"]),
                item["error"] or "intact",
            ]
            for item in found
        ],
    )
    output.result({"releases": found})


@app.command()
def show(release: Folder, json: Json = False) -> None:
    """The model card, thresholds and rules of a release."""
    from model_release import open_release
    from model_release.manifest import CARD_FILE

    output = Output(json)
    opened = open_release(release, None)
    manifest = opened.manifest
    output.note(f"{opened.id}, created {manifest.created_at}, content {manifest.content_hash}")
    output.note((opened.path / CARD_FILE).read_text(encoding="utf-8"))
    output.result(manifest.model_dump(mode="json"))


@app.command()
def verify(release: Folder, json: Json = False) -> None:
    """Every hash, and every golden row through the module: the same bits, or an error that says what differs."""
    from model_release import Release, ReleaseError, open_release

    output = Output(json)
    opened = open_release(release, None)
    if isinstance(opened, Release):
        rows = _same_scores(opened)
    else:
        from model_release.recommender_writer import golden_difference

        if difference := golden_difference(opened):
            raise ReleaseError(difference)
        rows = len(opened.golden.rows)
    output.note(f"{opened.id}: {len(opened.manifest.files)} files intact, {rows} golden rows equal to the bit")
    output.result({"release": opened.id, "files": len(opened.manifest.files), "golden_rows": rows})


@app.command()
def promote(
    model: Model,
    release: Annotated[str, typer.Argument(help="Its id, e.g. fraud-3f9c2a71d0e4.")],
    canary: Annotated[
        str, typer.Option(metavar="SHARE", help="For a share of the customers, e.g. 10%; always the same ones.")
    ] = "",
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Scores what others decide; compared, never answered.")
    ] = False,
    redis_url: RedisUrl = LOCAL,
    releases: Annotated[
        Path, typer.Option(envvar="TRINE_RELEASES", help="Folder of releases, for models that only batch jobs use.")
    ] = Path("releases"),
    wait: Wait = 10.0,
    json: Json = False,
) -> None:
    """Let a release serve, in every mode, without a restart.

    Refused until every gateway process, every TorchServe and the workers report it loaded and its views ready. Raising
    a canary's share only adds customers. Exit codes: 0 it serves (or did already); 3 no such move; 4 Redis is away, or
    not every gateway has followed in time; 5 not loaded everywhere, the reason names each process; 6 somebody else
    moved the pointer meanwhile.
    """
    from trine_cli.errors import UsageError
    from trine_cli.rollout import promote as promote_release
    from trine_cli.rollout import share_of

    if canary and shadow:
        raise UsageError("--canary and --shadow: a canary answers, a shadow does not; one of them")
    share = share_of(canary) if canary else None
    with _rollouts(redis_url) as store:
        moved = promote_release(store, model, release, share, shadow, releases, wait)
    _told(Output(json), moved)


@app.command()
def rollback(
    model: Model,
    shadow: Annotated[bool, typer.Option("--shadow", help="End the shadow; whoever answers stays.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also while TorchServe is down: rules decide until it answers again.")
    ] = False,
    redis_url: RedisUrl = LOCAL,
    wait: Wait = 10.0,
    json: Json = False,
) -> None:
    """End a canary; without one, the release before serves again. Exit codes as those of promote."""
    from trine_cli.rollout import roll_back

    with _rollouts(redis_url) as store:
        moved = roll_back(store, model, shadow, wait, force)
    _told(Output(json), moved)


@app.command()
def status(model: Model, redis_url: RedisUrl = LOCAL, json: Json = False) -> None:
    """Which releases serve, and what every live process has loaded."""
    from trine_cli.errors import BadInput
    from trine_cli.rollout import as_json

    output = Output(json)
    with _rollouts(redis_url) as store:
        pointer, reports = store.read(model), store.reports(model)
    if pointer is None and not reports:
        raise BadInput(f"model {model}: nothing serves by this Redis, and no process has reported to it")
    if pointer is not None:
        output.note(_sentence(pointer))
    output.table(
        "Processes",
        ["process", "generation", "loaded", "not loaded"],
        [
            [
                report.shown,
                report.generation or "",
                ", ".join(name for name, why in report.releases.items() if not why) or ", ".join(report.keeps),
                "; ".join(f"{name}: {why}" for name, why in report.releases.items() if why),
            ]
            for report in reports
        ],
    )
    output.result({"pointer": None if pointer is None else as_json(pointer), "processes": [asdict(r) for r in reports]})


@contextmanager
def _rollouts(url: str) -> Iterator[RolloutStore]:
    import redis
    from model_release.rollout_store import RolloutStore

    with redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5) as client:
        yield RolloutStore(client)


def _told(output: Output, moved: Moved) -> None:
    from trine_cli.errors import Unavailable
    from trine_cli.rollout import as_json

    output.note(("" if moved.changed else "nothing to do: ") + _sentence(moved.now))
    output.result(
        {
            "changed": moved.changed, "pointer": as_json(moved.now), "seconds": round(moved.seconds, 3),
            "not_following": moved.waiting,
        }
    )  # fmt: skip
    if moved.waiting:
        raise Unavailable(
            f"the pointer is moved; not following yet after {moved.seconds:.1f} s: {', '.join(moved.waiting)}"
            " (see `trine release status`)"
        )


def _sentence(pointer: Pointer) -> str:
    parts = [f"{pointer.model}: {pointer.current} serves"]
    if pointer.canary is not None:
        parts.append(f"{pointer.canary.release} decides for {pointer.canary.share:.4%} of the customers")
    if pointer.shadow:
        parts.append(f"{pointer.shadow} is the shadow")
    if pointer.previous:
        parts.append(f"rollback goes to {pointer.previous}")
    return "; ".join(parts) + f" (generation {pointer.generation})"


def _same_scores(opened: Release) -> int:
    """Golden rows that the module scores as it did when it was released: all, or ReleaseError."""
    import numpy as np
    from model_release import ReleaseError, scoring_module

    scores = scoring_module.load(opened.module_path)(opened.golden_inputs)
    differ = np.flatnonzero(scores.view(np.int32) != opened.golden_scores.view(np.int32))
    if len(differ):
        row = int(differ[0])
        raise ReleaseError(
            f"{opened.module_path}: {len(differ)} of {len(scores)} golden rows differ; row {row} gives {scores[row]}, "
            f"golden_scores.f32 says {opened.golden_scores[row]}"
        )
    return len(scores)


def _quality(test: Any) -> str:
    """The first metric of a release's test, as it is in its manifest (Any: JSON)."""
    known = ("average_precision", "ndcg_at_10")
    found = [f"{test[name]} {name.replace('_', ' ')}" for name in known if isinstance(test, dict) and name in test]
    return found[0] if found else ""
