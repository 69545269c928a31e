"""`trine data`: make a dataset folder, by a documented process or from a user's own files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trine_cli.errors import UsageError
from trine_cli.interactions import Kind, generate_interactions, import_interactions, refuse_options
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from models.fraud.import_mapping import ImportOptions

app = typer.Typer(help="Make or import a dataset of card transactions, or of interactions.")

Out = Annotated[Path, typer.Option(help="The dataset folder to write; it appears when it is whole.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")]
Currency = Annotated[str, typer.Option(help="ISO 4217 code.")]
KindOption = Annotated[Kind, typer.Option(help="What the dataset is of.")]
_SIZE, _REPORTS, _INTERACTIONS = "Size", "Fraud reports", "Size, with --kind interactions"
_ONLY_TRANSACTIONS = (
    "customers", "terminals", "radius", "currency", "late_share", "withdrawn_share", "false_report_share",
    "churn_rate",
)  # fmt: skip
_ONLY_INTERACTIONS = ("users", "items", "views")


class AmountUnit(StrEnum):
    """What amounts in a user's files count."""

    MAJOR = "major"
    MINOR = "minor"


class TimeUnit(StrEnum):
    """What whole numbers in a user's time columns count."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"


@app.command()
def generate(
    context: typer.Context,
    out: Out,
    kind: KindOption = Kind.TRANSACTIONS,
    customers: Annotated[int, typer.Option(rich_help_panel=_SIZE)] = 5_000,
    terminals: Annotated[int, typer.Option(rich_help_panel=_SIZE)] = 10_000,
    days: Annotated[int, typer.Option(rich_help_panel=_SIZE)] = 183,
    start: Annotated[dt.datetime, typer.Option(formats=["%Y-%m-%d"], help="First day, UTC.")] = dt.datetime(2018, 4, 1),
    seed: Annotated[int, typer.Option(help="The same seed makes the same files.")] = 0,
    radius: Annotated[float, typer.Option(help="How far customers go to a terminal, on a map of 100 by 100.")] = 5.0,
    currency: Currency = "EUR",
    late_share: Annotated[
        float, typer.Option(help="Share of frauds reported after more than 7 days.", rich_help_panel=_REPORTS)
    ] = 0.05,
    withdrawn_share: Annotated[
        float, typer.Option(help="Share of frauds whose report is withdrawn in error.", rich_help_panel=_REPORTS)
    ] = 0.01,
    false_report_share: Annotated[
        float,
        typer.Option(
            help="Genuine transactions reported in error and withdrawn, as a share of the frauds.",
            rich_help_panel=_REPORTS,
        ),
    ] = 0.02,
    churn_rate: Annotated[float, typer.Option(help="Share of customers that leave in 30 days, on average.")] = 0.0,
    users: Annotated[int, typer.Option(rich_help_panel=_INTERACTIONS)] = 2_000,
    items: Annotated[int, typer.Option(rich_help_panel=_INTERACTIONS)] = 1_500,
    views: Annotated[float, typer.Option(help="Of a user, on average.", rich_help_panel=_INTERACTIONS)] = 120.0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make card transactions by the fraud handbook's published process, and when their frauds became known.

    With --kind interactions: what users viewed and liked, by latent tastes that drift, popularity and new items.

    With the same options the same files come out; a dataset that is there already and was made with them is left alone.
    """
    from models.fraud.generator import generate as generate_dataset
    from models.fraud.generator_parameters import GeneratorParameters

    output = Output(json)
    refuse_options(context, kind, _ONLY_INTERACTIONS if kind is Kind.TRANSACTIONS else _ONLY_TRANSACTIONS)
    if kind is Kind.INTERACTIONS:
        size = {"users": users, "items": items, "views": views}
        return generate_interactions(output, out, overwrite, days, start.date(), seed, size)
    parameters = GeneratorParameters(
        customers=customers,
        terminals=terminals,
        days=days,
        start=start.date(),
        seed=seed,
        radius=radius,
        currency=currency,
        late_share=late_share,
        withdrawn_share=withdrawn_share,
        false_report_share=false_report_share,
        churn_rate=churn_rate,
    )
    with output.progress("Generating and writing days", total=2 * days) as advance:
        description, made = generate_dataset(parameters, out, overwrite, advance)
    output.table(
        f"{out}: {'made' if made else 'there already, made with the same options'}",
        ["what", "number"],
        [
            ["transactions", f"{description['transactions']:,}"],
            *(
                [f"frauds of scenario {scenario}", f"{count:,}"]
                for scenario, count in description["frauds_by_scenario"].items()
            ),
            ["fraud reports", f"{description['fraud_reports']:,}"],
            ["of these withdrawals", f"{description['withdrawn_reports']:,}"],
        ],
    )
    output.result({"dataset": str(out), "made": made, **description})


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A Parquet or CSV file, or a folder of them.")],
    out: Out,
    kind: KindOption = Kind.TRANSACTIONS,
    column_map: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="Which of your columns a field is; may be repeated."),
    ] = None,
    currency: Annotated[str, typer.Option(help="ISO 4217 code for files without a currency column.")] = "EUR",
    amount_unit: Annotated[AmountUnit, typer.Option(help="12.34 is major, 1234 minor.")] = AmountUnit.MAJOR,
    time_unit: Annotated[
        TimeUnit | None, typer.Option(help="What whole numbers as times count since 1970-01-01 UTC.")
    ] = None,
    delimiter: Annotated[str, typer.Option(help="Between the cells of a CSV file.")] = ",",
    fraud_reports: Annotated[
        Path | None,
        typer.Option(
            help="A file or folder with transaction_id, reported_at and, if you have them, fraud and scenario."
        ),
    ] = None,
    report_map: Annotated[
        list[str] | None,
        typer.Option("--map-reports", metavar="FIELD=COLUMN", help="As --map, for the files of --fraud-reports."),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Write the good rows and list the bad ones in dataset.json.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a dataset of your own transactions, or interactions.

    Fields: transaction_id, event_time, customer_id, terminal_id, amount and, if you have them, currency, fraud and
    scenario. Columns of these names, and the fraud handbook's (TX_AMOUNT, ...), are recognised without --map. Times
    without a zone are UTC. A transaction whose fraud column says so counts as reported 7 days later.

    With --kind interactions: user_id, item_id, event_time and, if you have them, kind, value and interaction_id.
    MovieLens' u.data and ratings.csv are recognised as they are.

    Bad rows: none is dropped silently; without --skip-bad-rows any of them stops the import, and nothing is written.
    """
    from models.fraud.import_mapping import ImportOptions
    from models.recommender.importer import InteractionOptions

    output = Output(json)
    if kind is Kind.INTERACTIONS:
        refuse_options(context, kind, ("currency", "amount_unit", "fraud_reports", "report_map"))
        own = InteractionOptions(
            columns=_pairs("--map", column_map),
            time_unit=None if time_unit is None else time_unit.value,
            delimiter=delimiter,
            skip_bad_rows=skip_bad_rows,
        )
        description = _accounted(output, lambda: import_interactions(output, source, out, own, overwrite))
        return _finished(output, out, description)
    options = ImportOptions(
        columns=_pairs("--map", column_map),
        report_columns=_pairs("--map-reports", report_map),
        currency=currency,
        amount_unit=amount_unit.value,
        time_unit=None if time_unit is None else time_unit.value,
        delimiter=delimiter,
        skip_bad_rows=skip_bad_rows,
    )
    if report_map and fraud_reports is None:
        raise UsageError("--map-reports is for the files of --fraud-reports, and there are none")
    description = _accounted(output, lambda: _transactions(output, source, out, options, fraud_reports, overwrite))
    if description["without_currency_column"]:
        output.note(f"Amounts of files without a currency column were taken as {currency}.")
    _finished(output, out, description)


def _transactions(
    output: Output, source: Path, out: Path, options: ImportOptions, fraud_reports: Path | None, overwrite: bool
) -> dict[str, Any]:
    from models.fraud.importer import import_dataset

    with output.progress("Reading rows") as advance:
        description = import_dataset(source, out, options, fraud_reports, overwrite, advance)
    output.table(
        f"{out}: made",
        ["what", "number"],
        [
            ["transactions", f"{description['transactions']:,}"],
            ["fraud reports", f"{description['fraud_reports']:,}"],
            ["bad rows left out", f"{description['bad_rows']['rows']:,}"],
        ],
    )
    return description


def _accounted(output: Output, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns (Any: JSON); bad rows that stop it are shown first."""
    from models.importing.errors import BadRowsError

    try:
        return make()
    except BadRowsError as error:
        _show_bad_rows(output, error.bad_rows.to_json())
        output.result({"dataset": None, "bad_rows": error.bad_rows.to_json()})
        raise


def _finished(output: Output, out: Path, description: dict[str, Any]) -> None:
    if description["bad_rows"]["rows"]:
        _show_bad_rows(output, description["bad_rows"])
    output.result({"dataset": str(out), **description})


def _show_bad_rows(output: Output, bad_rows: dict[str, Any]) -> None:
    """The account as it is in dataset.json; Any: JSON."""
    output.table(
        "Rows that cannot be used",
        ["field", "reason", "must be", "rows", "for example"],
        [
            [r["field"], r["reason"], r["right"], f"{r['rows']:,}", "\n".join(_example(e) for e in r["examples"])]
            for r in bad_rows["reasons"]
        ],
    )


def _example(example: dict[str, Any]) -> str:
    value = "nothing" if example["value"] is None else repr(example["value"])
    return f"{example['file']} row {example['row'] or '?'}: {value}"


def _pairs(option: str, words: Sequence[str] | None) -> dict[str, str]:
    """FIELD=COLUMN words as a mapping."""
    pairs: dict[str, str] = {}
    for word in words or ():
        name, separator, column = word.partition("=")
        if not (name and separator and column):
            raise UsageError(f"{option} {word}: must be FIELD=COLUMN, such as amount=TX_AMOUNT")
        if pairs.setdefault(name, column) != column:
            raise UsageError(f"{option}: {name} is given twice, as {pairs[name]} and as {column}")
    return pairs
