"""`trine train`: train a model on a dataset and write it as an immutable release."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trine_cli.moments import day_number, moment_us
from trine_cli.output import Json, Output

app = typer.Typer(help="Train a model and write it as an immutable release.")


FIGURES = ("split", "by", "nDCG@10", "precision@10", "recall@10", "users")


class Unrecorded(StrEnum):
    """What the gateway does with an event that it can record nowhere."""

    ANSWER = "answer"
    REFUSE = "refuse"


class ValidateBy(StrEnum):
    """How interactions are held out while a recipe is chosen."""

    TIME = "time"
    USER = "user"


@app.callback()
def _train() -> None: ...


@app.command()
def fraud(
    transactions: Annotated[Path, typer.Option(help="Dataset folder (trine data generate, trine data import).")],
    test_start: Annotated[str, typer.Option(help="First test day, e.g. 2018-07-25; training happens when it begins.")],
    releases: Annotated[Path, typer.Option(help="Folder that the release is written into.")],
    train_days: Annotated[int, typer.Option(min=1, help="Days to train on.")] = 7,
    delay_days: Annotated[int, typer.Option(min=0, help="Days between training and test, for labels to come.")] = 7,
    test_days: Annotated[int, typer.Option(min=1, help="Days to test, and to validate, on.")] = 7,
    review_budget: Annotated[int, typer.Option(min=1, help="Cards a day that people can look at.")] = 100,
    deny_precision: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of frauds among the denied.")] = 0.9,
    unrecorded: Annotated[Unrecorded, typer.Option(help="Events that can be recorded nowhere.")] = Unrecorded.REFUSE,
    seed: Annotated[int, typer.Option(min=0, help="Same data and seed, same release.")] = 0,
    json: Json = False,
) -> None:
    """Train the fraud model, choose thresholds on validation days, measure on test days, write the release."""
    from models.fraud.protocol import Fold
    from models.fraud.release_training import Choices, train_release
    from models.tabular.training import Recipe

    output = Output(json)
    fold = Fold(day_number(test_start, "--test-start"), train_days, delay_days, test_days)
    choices = Choices(review_budget, deny_precision, unrecorded.value, Recipe(seed=seed))
    began = time.monotonic()
    with output.progress("Training", total=2) as advance:
        trained = train_release(transactions, releases, fold, choices, advance)
    seconds = time.monotonic() - began
    manifest = trained.release.manifest
    validation, test = trained.validation.summary(), trained.test.summary() if trained.test else {}
    output.table(
        f"{trained.release.id}, trained in {seconds:.0f} s",
        ["metric", "validation", "test"],
        [[name.replace("_", " "), value, test.get(name, "no test days yet")] for name, value in validation.items()],
    )
    output.note(manifest.threshold_basis)
    show_fallback(output, trained.fallback)
    output.note(f"written to {trained.release.path}")
    output.result(
        {
            "release": trained.release.id,
            "path": str(trained.release.path),
            "validation": validation,
            "test": test or None,
            "fallback": trained.fallback,
            "thresholds": manifest.thresholds.model_dump(),
            "seconds": round(seconds, 3),
        }
    )


def show_fallback(output: Output, found: Mapping[str, Mapping[str, Mapping[str, object]] | None]) -> None:
    """What answers without the model: rules alone, and with batch scores; by kind of days, then by who answers."""
    from models.fraud.fallback import ANSWERS, FIGURES

    rows = [(days, by, answers[by]) for days, answers in found.items() for by in ANSWERS if answers and by in answers]
    output.table(
        "Without the model: rules alone beside rules and batch scores",
        ["days", "answered by", *(name.replace("_", " ") for name in FIGURES)],
        [[days, by.replace("_", " "), *(figures[name] for name in FIGURES)] for days, by, figures in rows],
    )


@app.command()
def churn(
    transactions: Annotated[Path, typer.Option(help="Dataset folder (trine data generate --churn-rate, import).")],
    cutoff: Annotated[str, typer.Option(help="When training happens, e.g. 2018-09-01: only what was before counts.")],
    releases: Annotated[Path, typer.Option(help="Folder that the release is written into.")],
    cutoffs: Annotated[int, typer.Option(min=1, help="Past cut-offs to train on, a week apart.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same data and seed, same release.")] = 0,
    json: Json = False,
) -> None:
    """Train the churn model, measure it beside recency and frequency alone, write the release."""
    from models.churn.release_training import Choices, churn_recipe, train_release

    output = Output(json)
    began = time.monotonic()
    with output.progress("Training", total=2) as advance:
        choices = Choices(cutoffs, churn_recipe(seed))
        trained = train_release(transactions, releases, day_number(cutoff, "--cutoff"), choices, advance)
    seconds = time.monotonic() - began
    figures = {"validation": trained.validation, "test": trained.test}
    show_churn(output, f"{trained.release.id}, trained in {seconds:.0f} s", figures)
    output.note(f"written to {trained.release.path}")
    output.result(
        {
            "release": trained.release.id, "path": str(trained.release.path), **figures,
            "thresholds": trained.release.manifest.thresholds.model_dump(), "seconds": round(seconds, 3),
        }
    )  # fmt: skip


def show_churn(output: Output, title: str, found: Mapping[str, Mapping[str, Mapping[str, object]] | None]) -> None:
    """Figures of the network and of its baseline, by when they were measured."""
    rows = [(when, by, figures) for when, sides in found.items() for by, figures in (sides or {}).items()]
    names = list(rows[0][2])
    output.table(
        title,
        ["measured", "by", *(name.replace("_", " ") for name in names)],
        [[when, by, *(figures[name] for name in names)] for when, by, figures in rows],
    )


@app.command()
def recommender(
    interactions: Annotated[Path, typer.Option(help="Dataset folder (trine data ... --kind interactions).")],
    releases: Annotated[Path, typer.Option(help="Folder that the release is written into.")],
    until: Annotated[str | None, typer.Option(help="Train on what was before, e.g. 2018-09-01; else on all.")] = None,
    tune: Annotated[bool, typer.Option(help="Choose the recipe on held-out interactions; about ten fits.")] = True,
    validate_by: Annotated[ValidateBy, typer.Option(help="The last of the time, or some of each user's items.")] = (
        ValidateBy.TIME
    ),
    seed: Annotated[int, typer.Option(min=0, help="Same data and seed, same release.")] = 0,
    json: Json = False,
) -> None:
    """Train the recommender's two towers, measure them on two splits beside popularity, write the release."""
    from models.recommender.recipe import Recipe
    from models.recommender.release_training import train_release

    output = Output(json)
    to_us = None if until is None else moment_us(until, "--until")
    began = time.monotonic()
    with output.progress("Training", total=1) as advance:
        trained = train_release(interactions, releases, Recipe(seed=seed), tune, validate_by.value, to_us, advance)
    seconds = time.monotonic() - began
    output.table(
        f"{trained.release.id}, trained in {seconds:.0f} s",
        FIGURES,
        [[name, side, *found.values()] for name, sides in trained.figures.items() for side, found in sides.items()],
    )
    output.note(f"recipe: {trained.release.manifest.training['recipe']}")
    output.note(f"written to {trained.release.path}")
    output.result(
        {
            "release": trained.release.id,
            "path": str(trained.release.path),
            "splits": trained.figures,
            "recipe": trained.release.manifest.training["recipe"],
            "seconds": round(seconds, 3),
        }
    )
