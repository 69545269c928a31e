"""Makes a dataset of card transactions by the fraud handbook's published process, the same for the same seed.

`population` draws customers, terminals and transactions, `fraud_scenarios` makes some of them fraud, `fraud_reports`
says when that became known; here they become a dataset folder.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.dataset import DAY_US, TIME_TYPE, SourceFiles, times_us
from feature_store.dataset_writer import DatasetWriter, description_of
from numpy.typing import NDArray

from models.fraud.errors import ParameterError
from models.fraud.fraud_reports import Reports, make_reports
from models.fraud.fraud_scenarios import Frauds, apply_scenarios
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.population import Transactions, make_population, make_transactions
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES

MADE_BY = "trine data generate"
# Goes up with every change that makes other data of the same parameters.
PROCESS = 1


def generate(
    parameters: GeneratorParameters,
    out: str | Path,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda steps: None,
) -> tuple[dict[str, Any], bool]:
    """Writes the dataset folder `out`; returns its description (as in dataset.json) and whether it was made now.

    A dataset at `out` that was made with the same parameters is left as it is. `advance` is called with steps done, of
    `2 * parameters.days` in all. Raises ParameterError where they make no transaction at all, DatasetError where
    something else is at `out` and `overwrite` is False.
    """
    made = {"made_by": MADE_BY, "process": PROCESS, "parameters": parameters.to_json()}
    present = description_of(out)
    if present is not None and made.items() <= present.items():
        return present, False
    with DatasetWriter(out, overwrite) as writer:
        transactions = make_transactions(make_population(parameters), parameters, advance)
        if not len(transactions.second):
            raise ParameterError("these parameters make no transaction; ask for more customers, terminals or days")
        frauds = apply_scenarios(transactions, parameters)
        reports = make_reports(transactions.second, frauds.scenario, parameters)
        start_us = (parameters.start - dt.date(1970, 1, 1)).days * DAY_US
        for day_us, table in _by_day(TRANSACTION_FILES, _transaction_table(transactions, frauds, start_us, parameters)):
            writer.write_day(TRANSACTION_FILES, day_us, table)
            advance(1)
        for day_us, table in _by_day(FRAUD_REPORT_FILES, _report_table(reports, start_us)):
            writer.write_day(FRAUD_REPORT_FILES, day_us, table)
        return writer.finish({**made, **_counts(frauds, reports)}), True


def _transaction_table(
    transactions: Transactions, frauds: Frauds, start_us: int, parameters: GeneratorParameters
) -> pa.Table:
    count = len(transactions.second)
    return pa.table(
        {
            # Ids are numbers in event-time order.
            "transaction_id": _decimal(np.arange(count, dtype=np.int64)),
            "event_time": pa.array(start_us + transactions.second * 1_000_000).cast(TIME_TYPE),
            "customer_id": _decimal(transactions.customer),
            "terminal_id": _decimal(transactions.terminal),
            "amount": pa.array(frauds.amount),
            "currency": pa.repeat(pa.scalar(parameters.currency), count),
        },
        schema=TRANSACTION_FILES.schema,
    )


def _report_table(reports: Reports, start_us: int) -> pa.Table:
    return pa.table(
        {
            "transaction_id": _decimal(reports.row),
            "reported_at": pa.array(start_us + reports.second * 1_000_000).cast(TIME_TYPE),
            "fraud": pa.array(reports.fraud),
            "scenario": pa.array(reports.scenario),
        },
        schema=FRAUD_REPORT_FILES.schema,
    )


def _by_day(source: SourceFiles, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """(first microsecond of a day, its rows) of a table in time order."""
    day = times_us(table, source.time_column) // DAY_US
    edges = [*np.flatnonzero(np.diff(day, prepend=-1)).tolist(), len(day)]
    for begin, end in pairwise(edges):
        yield int(day[begin]) * DAY_US, table.slice(begin, end - begin)


def _counts(frauds: Frauds, reports: Reports) -> dict[str, object]:
    return {
        "transactions": len(frauds.amount),
        "frauds_by_scenario": {str(s): int((frauds.scenario == s).sum()) for s in (1, 2, 3)},
        "fraud_reports": len(reports.row),
        "withdrawn_reports": int((~reports.fraud).sum()),
    }


def _decimal(numbers: NDArray[np.int64]) -> pa.Array[Any]:
    return pa.array(numbers).cast(pa.string())
