"""Interactions for `trine data`: what `--kind interactions` does, and which options go with which kind."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trine_cli.errors import UsageError
from trine_cli.output import Output

if TYPE_CHECKING:
    from models.recommender.importer import InteractionOptions


class Kind(StrEnum):
    """What a dataset is of."""

    TRANSACTIONS = "transactions"
    INTERACTIONS = "interactions"


def refuse_options(context: typer.Context, kind: Kind, not_for_it: Iterable[str]) -> None:
    """Raises UsageError where an option was given that means nothing for this kind."""
    for name in not_for_it:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
            raise UsageError(f"{option} means nothing for --kind {kind.value}")


def generate_interactions(
    output: Output, out: Path, overwrite: bool, days: int, start: dt.date, seed: int, size: dict[str, Any]
) -> None:
    """Makes the dataset and says what is in it. `size`: users, items, views (Any: the parameters' own types)."""
    from models.recommender.generator import generate
    from models.recommender.generator_parameters import GeneratorParameters

    parameters = GeneratorParameters(days=days, start=start, seed=seed, **size)
    with output.progress("Generating and writing days", total=days) as advance:
        description, made = generate(parameters, out, overwrite, advance)
    output.table(
        f"{out}: {'made' if made else 'there already, made with the same options'}",
        ["what", "number"],
        [[name, f"{description[name]:,}"] for name in ("interactions", "likes", "users", "items")],
    )
    output.result({"dataset": str(out), "made": made, **description})


def import_interactions(
    output: Output, source: Path, out: Path, options: InteractionOptions, overwrite: bool
) -> dict[str, Any]:
    """The description of the dataset that was made of the user's files, shown. Raises BadRowsError."""
    from models.recommender.importer import import_interactions as make

    with output.progress("Reading rows") as advance:
        description = make(source, out, options, overwrite, advance)
    output.table(
        f"{out}: made",
        ["what", "number"],
        [
            *([name, f"{description[name]:,}"] for name in ("interactions", "users", "items")),
            *([f"of kind {kind}", f"{count:,}"] for kind, count in description["kinds"].items()),
            ["bad rows left out", f"{description['bad_rows']['rows']:,}"],
        ],
    )
    return description
