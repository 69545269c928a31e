"""`trine release`: what releases there are, what is in one, and whether it is intact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trine_cli.errors import BadInput
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from model_release import Release

app = typer.Typer(help="List, show and verify releases.")

Folder = Annotated[Path, typer.Argument(help="Release folder.")]


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
