"""`trine evaluate`: measure a release on what it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trine_cli.commands.train import show_churn, show_fallback
from trine_cli.errors import UsageError
from trine_cli.moments import day_number
from trine_cli.output import Json, Output

app = typer.Typer(help="Measure a release on other days.")


@app.callback()
def _evaluate() -> None: ...


@app.command()
def fraud(
    release: Annotated[Path, typer.Option(help="Release folder.")],
    transactions: Annotated[Path, typer.Option(help="Dataset folder (trine data generate, trine data import).")],
    from_: Annotated[str, typer.Option("--from", help="First day measured, e.g. 2018-07-25.")],
    to: Annotated[str, typer.Option(help="First day no longer measured.")],
    fallback: Annotated[
        bool,
        typer.Option("--fallback", help="Also what answers without the model: rules, with and without batch scores."),
    ] = False,
    json: Json = False,
) -> None:
    """AUC ROC, average precision and card precision at 100 by the published protocol, and what was decided."""
    from model_release import open_release

    from models.fraud.evaluation import evaluate_release
    from models.fraud.fallback_evaluation import evaluate_fallback

    output = Output(json)
    first, end = day_number(from_, "--from"), day_number(to, "--to")
    if end <= first:
        raise UsageError(f"--to: {to} must be after --from {from_}")
    opened = open_release(release)
    with output.progress("Evaluating", total=1) as advance:
        found = evaluate_release(opened, transactions, first, end).summary()
        without_model = evaluate_fallback(opened, transactions, first, end) if fallback else {}
        advance(1)
    output.table(
        f"{opened.id}, {from_} to {to}", ["metric", "value"], [[k.replace("_", " "), v] for k, v in found.items()]
    )
    if without_model:
        show_fallback(output, {f"{from_} to {to}": without_model})
    output.result(
        {"release": opened.id, "from": from_, "to": to, **found, **({"fallback": without_model} if fallback else {})}
    )


@app.command()
def churn(
    release: Annotated[Path, typer.Option(help="Release folder.")],
    transactions: Annotated[Path, typer.Option(help="Dataset folder that goes on for 30 days after the cut-off.")],
    cutoff: Annotated[str, typer.Option(help="When it is asked who leaves, e.g. 2018-09-01.")],
    json: Json = False,
) -> None:
    """AUC ROC, average precision and Brier score, beside a logistic regression on recency and frequency buckets."""
    from model_release import open_release

    from models.churn.release_training import evaluate_release

    output = Output(json)
    opened = open_release(release)
    with output.progress("Evaluating", total=1) as advance:
        found = evaluate_release(opened, transactions, day_number(cutoff, "--cutoff"))
        advance(1)
    show_churn(output, f"{opened.id} at {cutoff}", {cutoff: found})
    output.result({"release": opened.id, "cutoff": cutoff, **found})


@app.command()
def recommender(
    release: Annotated[Path, typer.Option(help="Release folder.")],
    interactions: Annotated[Path, typer.Option(help="Dataset folder (trine data ... --kind interactions).")],
    json: Json = False,
) -> None:
    """nDCG, precision and recall at 10, on any interactions.

    The release's recipe is fitted anew on the training part of two splits (a quarter of each user's items at random;
    the last quarter of the time), beside popularity. Where there are interactions later than those that the release was
    trained on, it is measured on them as it is.
    """
    from model_release import open_release

    from models.recommender.evaluation import evaluate_release

    output = Output(json)
    opened = open_release(release, "recommender")
    with output.progress("Evaluating", total=1) as advance:
        found = evaluate_release(opened, interactions, advance)
    output.table(
        f"{opened.id} on {interactions}",
        ["split", "by", "nDCG@10", "precision@10", "recall@10", "users"],
        [[name, side, *figures.values()] for name, sides in found.items() for side, figures in sides.items()],
    )
    output.result({"release": opened.id, **found})
