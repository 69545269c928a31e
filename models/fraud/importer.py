"""Makes a dataset folder of a user's own transactions and fraud reports: all of it checked, nothing dropped silently.

Two passes: every file is read, checked and sorted into days on disk (`feature_store.day_sort`); then, if the user can
live with what was found, the days are written. Memory: a few batches, one day, and 16 bytes a transaction.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.dataset import DAY_US, TIME_TYPE
from feature_store.dataset_writer import DatasetWriter
from feature_store.day_sort import DaySort
from feature_store.validation import CURRENCIES, MINOR_DIGITS
from numpy.typing import NDArray

from models.fraud.import_amounts import amounts_minor
from models.fraud.import_mapping import (
    REPORT_FIELDS,
    REPORT_OPTIONAL,
    TRANSACTION_FIELDS,
    TRANSACTION_OPTIONAL,
    ImportOptions,
    resolve_columns,
)
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES
from models.importing.arrow_compute import pc
from models.importing.bad_rows import BadRows, RowCheck
from models.importing.errors import BadRowsError, SourceError
from models.importing.repeated import RepeatedIds
from models.importing.source_files import SourceBatch, batches, source_files
from models.importing.text import flags, identifiers, ids64, missing, small_numbers, text_of
from models.importing.times import times_us

MADE_BY = "trine data import"
LABEL_DELAY_US = 7 * DAY_US
"""A label without a report of its own counts as reported this long after its transaction, as the handbook assumes."""


def import_dataset(
    source: str | Path,
    out: str | Path,
    options: ImportOptions,
    fraud_reports: str | Path | None = None,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Writes the dataset folder `out` and returns its description (as in dataset.json).

    `source`: a Parquet or CSV file or a folder of them; `fraud_reports` likewise, and then a fraud column of `source`
    is not used. `advance` is called with rows read. Raises SourceError (a file or column that cannot be used),
    BadRowsError (rows that cannot be used, unless options.skip_bad_rows) and DatasetError (`out` is taken); nothing is
    at `out` then that was not before.
    """
    if fraud_reports is not None and "fraud" in options.columns:
        raise SourceError("a mapped fraud column and files of fraud reports: which of them is right? Give one")
    with DatasetWriter(out, overwrite) as writer:
        reading = _Reading(options, writer.folder / "scratch", advance)
        files = source_files(Path(source))
        for file in files:
            reading.read_transactions(file, with_labels=fraud_reports is None)
        repeated = reading.refuse_repeated()
        if fraud_reports is not None:
            reading.read_reports(source_files(Path(fraud_reports)))
        bad_rows = reading.bad_rows
        if bad_rows.total and not options.skip_bad_rows:
            raise BadRowsError(bad_rows)
        written = {TRANSACTION_FILES.folder: 0, FRAUD_REPORT_FILES.folder: 0}
        for kind, rows, left_out in (
            (TRANSACTION_FILES, reading.transactions, repeated),
            # A label's report has its transaction's ordinal; reports of their own have none of these.
            (FRAUD_REPORT_FILES, reading.reports, repeated),
        ):
            for day_us, table in rows.days(left_out):
                writer.write_day(kind, day_us, table)
                written[kind.folder] += table.num_rows
        if not written[TRANSACTION_FILES.folder]:
            raise SourceError(f"{source}: no row that can be used")
        shutil.rmtree(writer.folder / "scratch")
        description: dict[str, object] = {
            "made_by": MADE_BY,
            "sources": [file.name for file in files],
            "options": asdict(options),
            "transactions": written[TRANSACTION_FILES.folder],
            "fraud_reports": written[FRAUD_REPORT_FILES.folder],
            "labels_reported_after_days": LABEL_DELAY_US // DAY_US if reading.labelled else None,
            "without_currency_column": reading.default_currency_files,
            "bad_rows": bad_rows.to_json(),
        }
        return writer.finish(description)


class _Reading:
    """The first pass: what was read so far, sorted into days on disk, and what was wrong with it."""

    def __init__(self, options: ImportOptions, scratch: Path, advance: Callable[[int], None]) -> None:
        self._options, self._advance = options, advance
        self.bad_rows = BadRows()
        self.transactions = DaySort(TRANSACTION_FILES, scratch / TRANSACTION_FILES.folder)
        self.reports = DaySort(FRAUD_REPORT_FILES, scratch / FRAUD_REPORT_FILES.folder)
        self.labelled = False
        self.default_currency_files: list[str] = []
        self._seen = RepeatedIds()

    def read_transactions(self, file: Path, with_labels: bool) -> None:
        options = self._options

        def columns(name: str, present: list[str]) -> dict[str, str]:
            found = resolve_columns(name, present, options.columns, TRANSACTION_FIELDS, TRANSACTION_OPTIONAL)
            if "currency" not in found:
                self.default_currency_files.append(name)
            return found if with_labels else {k: v for k, v in found.items() if k not in ("fraud", "scenario")}

        self._seen.begin(file.name)
        for batch in batches(file, columns, options.delimiter, self.bad_rows):
            self._take_transactions(batch)
            self._advance(batch.columns.num_rows)

    def _take_transactions(self, batch: SourceBatch) -> None:
        rows = batch.columns.num_rows
        check = RowCheck(self.bad_rows, batch.file, batch.first_row, rows)
        column = dict(zip(batch.columns.schema.names, batch.columns.columns, strict=True))
        ids = identifiers(column["transaction_id"], "transaction_id", check)
        times = times_us(column["event_time"], "event_time", self._options.time_unit, check)
        customers = identifiers(column["customer_id"], "customer_id", check)
        terminals = identifiers(column["terminal_id"], "terminal_id", check)
        currency = self._currencies(column.get("currency"), rows, check)
        amount = amounts_minor(column["amount"], self._digits(currency), check)
        labelled = "fraud" in column
        fraud = flags(column["fraud"], "fraud", check) if labelled else np.zeros(rows, dtype=np.bool_)
        scenario = _scenarios(column.get("scenario") if labelled else None, rows, check)
        self.labelled |= labelled

        id64 = np.where(check.bad, -1, ids64(ids))
        ordinal = self._seen.add(id64)
        good = np.flatnonzero(~check.bad)
        table = pa.table(
            [ids, _timestamps(times), customers, terminals, pa.array(amount), currency], schema=TRANSACTION_FILES.schema
        )
        self.transactions.add(table.take(pa.array(good)), id64[good], ordinal[good])
        known = np.flatnonzero(~check.bad & fraud)
        if len(known):
            self._add_reports(ids, times + LABEL_DELAY_US, fraud, scenario, id64, known, ordinal)

    def refuse_repeated(self) -> NDArray[np.int64]:
        """Ordinals of rows whose transaction_id was there before, now among the bad rows."""
        right = "unique in the whole dataset"
        return self._seen.refuse("transaction_id", right, self.bad_rows, self.transactions.ids)

    def read_reports(self, files: list[Path]) -> None:
        """Reports of their own; a report on a transaction that the dataset does not have is a bad row."""
        options = self._options

        def columns(name: str, present: list[str]) -> dict[str, str]:
            return resolve_columns(name, present, options.report_columns, REPORT_FIELDS, REPORT_OPTIONAL)

        for file in files:
            for batch in batches(file, columns, options.delimiter, self.bad_rows):
                self._take_reports(batch)
                self._advance(batch.columns.num_rows)

    def _take_reports(self, batch: SourceBatch) -> None:
        rows = batch.columns.num_rows
        check = RowCheck(self.bad_rows, batch.file, batch.first_row, rows)
        column = dict(zip(batch.columns.schema.names, batch.columns.columns, strict=True))
        ids = identifiers(column["transaction_id"], "transaction_id", check)
        times = times_us(column["reported_at"], "reported_at", self._options.time_unit, check)
        fraud = flags(column["fraud"], "fraud", check) if "fraud" in column else np.ones(rows, dtype=np.bool_)
        scenario = _scenarios(column.get("scenario"), rows, check)
        id64 = ids64(ids)
        place = np.searchsorted(self._seen.known, id64)
        unknown = np.ones(rows, dtype=np.bool_)
        inside = place < len(self._seen.known)
        unknown[inside] = self._seen.known[place[inside]] != id64[inside]
        check.refuse(unknown, "transaction_id", "no such transaction", "the id of a usable transaction", ids)
        self._add_reports(
            ids, times, fraud, scenario, id64, np.flatnonzero(~check.bad), np.full(rows, -1, dtype=np.int64)
        )

    def _add_reports(
        self,
        # Any: a string column.
        ids: pa.Array[Any],
        times: NDArray[np.int64],
        fraud: NDArray[np.bool_],
        scenario: NDArray[np.int32],
        id64: NDArray[np.int64],
        rows: NDArray[np.int64],
        ordinal: NDArray[np.int64],
    ) -> None:
        table = pa.table(
            [ids.take(pa.array(rows)), _timestamps(times[rows]), pa.array(fraud[rows]), pa.array(scenario[rows])],
            schema=FRAUD_REPORT_FILES.schema,
        )
        self.reports.add(table, id64[rows], ordinal[rows])

    def _currencies(self, column: pa.Array[Any] | None, rows: int, check: RowCheck) -> pa.Array[Any]:
        if column is None:
            return pa.repeat(pa.scalar(self._options.currency), rows)
        text = text_of(column, "currency")
        check.refuse(missing(text), "currency", "missing", "every row needs one", column)
        known = pc.is_in(text, value_set=pa.array(sorted(CURRENCIES))).to_numpy(zero_copy_only=False)
        check.refuse(~known, "currency", "unknown", "an ISO 4217 code such as EUR", column)
        return text

    def _digits(self, currency: pa.Array[Any]) -> NDArray[np.int64]:
        """Decimals of each row's amount: those of its currency's minor unit, none where amounts are in minor units."""
        digits = np.zeros(len(currency), dtype=np.int64)
        if self._options.amount_unit == "minor":
            return digits
        encoded = currency.dictionary_encode()
        of_code = [MINOR_DIGITS.get(code, 2) for code in encoded.dictionary.to_pylist()]
        places = pc.fill_null(encoded.indices, 0).to_numpy()
        return np.asarray(np.array(of_code or [2], dtype=np.int64)[places])


def _scenarios(column: pa.Array[Any] | None, rows: int, check: RowCheck) -> NDArray[np.int32]:
    return np.zeros(rows, dtype=np.int32) if column is None else small_numbers(column, "scenario", check)


def _timestamps(times: NDArray[np.int64]) -> pa.Array[Any]:
    return pa.array(times).cast(TIME_TYPE)
