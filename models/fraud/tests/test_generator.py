"""The generator against the handbook's definitions, re-derived here row by row, and its promise to be repeatable."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from feature_store.dataset import DAY_US, DatasetError
from feature_store.dataset import times_us as column_us

from models.fraud.errors import ParameterError
from models.fraud.fraud_reports import make_reports
from models.fraud.fraud_scenarios import Frauds, apply_scenarios
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.population import Population, Transactions, make_population, make_transactions
from models.fraud.sources import FRAUD_REPORT_FILES, load_fraud_reports, load_transactions
from models.fraud.sources import truth as truth_of

SMALL = GeneratorParameters(customers=300, terminals=600, days=45, seed=7)


@pytest.fixture(scope="module")
def population() -> Population:
    return make_population(SMALL)


@pytest.fixture(scope="module")
def transactions(population: Population) -> Transactions:
    return make_transactions(population, SMALL)


@pytest.fixture(scope="module")
def frauds(transactions: Transactions) -> Frauds:
    return apply_scenarios(transactions, SMALL)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_makes_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    parameters = GeneratorParameters(customers=60, terminals=200, days=5, radius=10, seed=3)
    assert generate(parameters, tmp_path / "a")[1]
    assert generate(parameters, tmp_path / "b")[1]
    generate(GeneratorParameters(customers=60, terminals=200, days=5, radius=10, seed=4), tmp_path / "c")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_customers_reach_exactly_the_terminals_within_the_radius(population: Population) -> None:
    for customer in range(SMALL.customers):
        distance = np.sqrt(((population.terminal_xy - population.customer_xy[customer]) ** 2).sum(axis=1))
        reached = population.reach[population.reach_start[customer] : population.reach_start[customer + 1]]
        assert reached.tolist() == np.flatnonzero(distance < SMALL.radius).tolist()


def test_profiles_are_uniform_over_the_published_ranges() -> None:
    large = make_population(GeneratorParameters(customers=20_000, terminals=20_000, radius=0.5))
    for values, low, high in (
        (large.mean_amount, 5, 100),
        (large.mean_per_day, 0, 4),
        *((xy[:, axis], 0, 100) for xy in (large.customer_xy, large.terminal_xy) for axis in (0, 1)),
    ):
        assert low <= values.min()
        assert values.max() <= high
        shares = np.histogram(values, bins=10, range=(low, high))[0] / len(values)
        assert np.abs(shares - 0.1).max() < 0.01


def test_transactions_are_where_and_when_their_customer_could_make_them(
    population: Population, transactions: Transactions
) -> None:
    for customer, terminal in zip(transactions.customer.tolist(), transactions.terminal.tolist(), strict=True):
        start, end = population.reach_start[customer], population.reach_start[customer + 1]
        assert terminal in population.reach[start:end]
    assert (np.diff(transactions.second) >= 0).all()
    assert (transactions.second % 86_400 > 0).all()
    assert transactions.amount.min() >= 1
    assert transactions.amount.dtype == np.int64


def test_rates_amounts_and_times_of_day_follow_the_published_distributions() -> None:
    parameters = GeneratorParameters(customers=400, terminals=4_000, days=120, seed=1)
    population = make_population(parameters)
    made = make_transactions(population, parameters)
    reachable = np.diff(population.reach_start) > 0
    # P(0 < N(43200, 20000) < 86400) = 0.9692: the others are dropped.
    expected = population.mean_per_day[reachable] * parameters.days * 0.9692
    counted = np.bincount(made.customer, minlength=parameters.customers)[reachable]
    assert abs(counted.sum() / expected.sum() - 1) < 0.02
    assert np.abs((counted - expected) / np.sqrt(expected + 1)).max() < 5
    # An amount over mean + 2 std (twice the mean): only the normal's upper tail, 2.28 %.
    over = made.amount / 100 > 2 * population.mean_amount[made.customer]
    assert abs(over.mean() - 0.0228) < 0.003
    # Below 0 (again 2.28 %) it is drawn anew from U(0, 2 mean): Phi(2) + phi(2) / 2 + 0.0228.
    ratio = (made.amount / 100 / population.mean_amount[made.customer]).mean()
    assert abs(ratio - 1.027) < 0.01
    second = made.second % 86_400
    assert abs(second.mean() - 43_200) < 300
    # The normal cut at a = 2.16 deviations: std * sqrt(1 - 2 a phi(a) / 0.9692).
    assert abs(second.std() - 0.9097 * 20_000) < 150


def test_every_fraud_has_its_scenarios_cause_and_no_cause_is_without_fraud(
    transactions: Transactions, frauds: Frauds
) -> None:
    compromised_until: dict[int, list[int]] = defaultdict(list)
    for day, drawn in enumerate(frauds.terminals):
        assert len(set(drawn.tolist())) == 2
        for terminal in drawn.tolist():
            compromised_until[terminal].append(day)
    customer_from: dict[int, list[int]] = defaultdict(list)
    for day, drawn in enumerate(frauds.customers):
        assert len(set(drawn.tolist())) == 3
        for customer in drawn.tolist():
            customer_from[customer].append(day)
    seen: Counter[int] = Counter()
    for row in range(len(transactions.second)):
        day = int(transactions.second[row]) // 86_400
        before, after, scenario = int(transactions.amount[row]), int(frauds.amount[row]), int(frauds.scenario[row])
        at_terminal = any(start <= day < start + 28 for start in compromised_until[int(transactions.terminal[row])])
        of_customer = sum(start <= day < start + 14 for start in customer_from[int(transactions.customer[row])])
        if scenario == 3:
            assert of_customer
            assert after in [before * 5**times for times in range(1, of_customer + 1)]
        else:
            assert after == before
            assert scenario == (2 if at_terminal else 1 if before > 22_000 else 0)
        seen[scenario] += 1
    assert min(seen[scenario] for scenario in (0, 1, 2, 3)) > 0


def test_a_third_of_a_days_compromised_customers_transactions_is_taken() -> None:
    # One day of draws and one customer group only: no overlaps, so the count is exact.
    parameters = GeneratorParameters(customers=3, terminals=3_000, days=14, radius=20, seed=5)
    made = make_transactions(make_population(parameters), parameters)
    drawn_daily = apply_scenarios(made, parameters)
    assert (drawn_daily.customers.shape, set(drawn_daily.customers[0].tolist())) == ((14, 3), {0, 1, 2})
    one_day = GeneratorParameters(customers=3, terminals=3_000, days=1, radius=20, seed=5)
    frauds = apply_scenarios(made, one_day)
    assert int((frauds.scenario == 3).sum()) == len(made.second) // 3
    assert int((frauds.amount != made.amount).sum()) == len(made.second) // 3


def test_reports_come_when_declared(transactions: Transactions, frauds: Frauds) -> None:
    count = 200_000
    second = np.arange(count, dtype=np.int64)
    scenario = (np.arange(count) % 4).astype(np.int32)
    parameters = GeneratorParameters(late_share=0.1, withdrawn_share=0.03, false_report_share=0.05)
    reports = make_reports(second, scenario, parameters)
    assert (np.lexsort((reports.row, reports.second)) == np.arange(len(reports.row))).all()
    delay = reports.second - second[reports.row]
    assert delay.min() >= 1
    of_fraud = reports.fraud & (scenario[reports.row] > 0)
    frauds_in_all = int((scenario > 0).sum())
    # Every fraud is reported once, with its scenario.
    assert sorted(reports.row[of_fraud].tolist()) == np.flatnonzero(scenario).tolist()
    assert (reports.scenario[of_fraud] == scenario[reports.row[of_fraud]]).all()
    late = delay[of_fraud] > 7 * 86_400
    assert abs(late.mean() - 0.1) < 0.005
    assert delay[of_fraud].max() <= 30 * 86_400
    usual = delay[of_fraud][~late] / 86_400
    # The median of an exponential of mean 2 cut at 7: -2 ln(1 - 0.5 (1 - e^-3.5)).
    assert abs(np.median(usual) - 1.326) < 0.03
    # Reports in error: on genuine transactions, each withdrawn; besides, the declared share of the frauds.
    mistaken = reports.row[reports.fraud & (scenario[reports.row] == 0)]
    assert len(mistaken) == len(set(mistaken.tolist())) == round(frauds_in_all * 0.05)
    withdrawn = reports.row[~reports.fraud]
    assert set(mistaken.tolist()) <= set(withdrawn.tolist())
    assert abs((len(withdrawn) - len(mistaken)) / frauds_in_all - 0.03) < 0.003
    assert (reports.scenario[~reports.fraud] == 0).all()
    first = {row: at for row, at in zip(reports.row[::-1].tolist(), reports.second[::-1].tolist(), strict=True)}
    for row, at in zip(withdrawn.tolist(), reports.second[~reports.fraud].tolist(), strict=True):
        assert first[row] < at <= first[row] + 14 * 86_400


def test_the_folder_holds_what_was_made(tmp_path: Path, transactions: Transactions, frauds: Frauds) -> None:
    steps: list[int] = []
    description, made = generate(SMALL, tmp_path / "dataset", advance=steps.append)
    assert made
    assert sum(steps) <= 2 * SMALL.days
    table = load_transactions(tmp_path / "dataset")
    start_us = (SMALL.start - dt.date(1970, 1, 1)).days * DAY_US
    assert (column_us(table, "event_time") == start_us + transactions.second * 1_000_000).all()
    assert table.column("transaction_id").to_pylist() == [str(i) for i in range(table.num_rows)]
    assert table.column("customer_id").to_pylist() == [str(c) for c in transactions.customer.tolist()]
    assert table.column("terminal_id").to_pylist() == [str(t) for t in transactions.terminal.tolist()]
    assert table.column("amount").to_pylist() == frauds.amount.tolist()
    assert set(table.column("currency").to_pylist()) == {"EUR"}
    reports = load_fraud_reports(tmp_path / "dataset")
    assert description["transactions"] == table.num_rows
    assert description["fraud_reports"] == reports.num_rows
    withdrawn = {
        id_
        for id_, fraud in zip(
            reports.column("transaction_id").to_pylist(), reports.column("fraud").to_pylist(), strict=True
        )
        if not fraud
    }
    expected = [scenario > 0 and str(row) not in withdrawn for row, scenario in enumerate(frauds.scenario.tolist())]
    assert truth_of(table, reports).tolist() == expected
    assert (np.diff(column_us(reports, FRAUD_REPORT_FILES.time_column)) >= 0).all()


def test_made_once_is_left_alone_and_made_otherwise_is_refused(tmp_path: Path) -> None:
    parameters = GeneratorParameters(customers=50, terminals=500, days=3)
    first, made = generate(parameters, tmp_path / "dataset")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "dataset").rglob("*")}
    again, made_again = generate(parameters, tmp_path / "dataset")
    assert (made, made_again, again) == (True, False, first)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "dataset").rglob("*")}
    with pytest.raises(DatasetError, match="--overwrite"):
        generate(GeneratorParameters(customers=50, terminals=500, days=4), tmp_path / "dataset")
    replaced, made = generate(GeneratorParameters(customers=50, terminals=500, days=4), tmp_path / "dataset", True)
    assert made
    assert replaced["parameters"]["days"] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("customers", 0),
        ("days", -1),
        ("seed", -1),
        ("radius", float("nan")),
        ("currency", "eur"),
        ("late_share", 1.5),
        ("start", dt.date(1999, 12, 31)),
        ("late_report_days", 6.0),
        ("days", 40_000),
    ],
)
def test_a_parameter_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=f"{name} is .*, must be"):
        GeneratorParameters(**{name: value})  # type: ignore[arg-type]  # on purpose: one of them is wrong


def test_parameters_that_make_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no transaction"):
        generate(GeneratorParameters(customers=1, terminals=1, days=1, radius=0.001), tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []
