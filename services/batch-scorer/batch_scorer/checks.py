"""The checks before a run is published: each says what it found, its limit, and in words what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from batch_scorer.distributions import Distribution, psi
from batch_scorer.job import BatchJob


class Check(BaseModel):
    """One check's outcome; `detail` is a sentence for people."""

    model_config = ConfigDict(frozen=True)

    name: str
    passed: bool
    found: float
    limit: float
    detail: str


def run_checks(
    job: BatchJob,
    population: int,
    rows: int,
    duplicates: int,
    distributions: Mapping[str, Distribution],
    last: Mapping[str, Mapping[int, int]] | None,
    golden: str,
    last_release: str = "",
) -> list[Check]:
    """All checks of a run.

    Args:
        rows, duplicates: of the run; a duplicate is a row whose key another row has.
        distributions: by output.
        last: coarse bins by output of the last published run; None where there is none to compare to.
        golden: what the golden rows' check found, empty for nothing.
        last_release: what the last published run was scored with, where that is another release.
    """
    checks = [_count(job, population, rows), _distinct(rows, duplicates)]
    for name, found in distributions.items():  # none where there are no rows
        checks += _column(job, name, found)
    drift = job.checks.drift or tuple(name for name, found in distributions.items() if found.values)
    for name in drift:
        if last is not None and name in last and name in distributions:
            checks.append(_drift(job, name, last[name], distributions[name], last_release))
    if job.checks.golden:
        detail = golden or "the release's golden rows score as recorded, in an executor, to the bit"
        checks.append(Check(name="golden", passed=not golden, found=float(bool(golden)), limit=0.0, detail=detail))
    return checks


def _count(job: BatchJob, population: int, rows: int) -> Check:
    share = rows / population if population else 0.0
    detail = f"{rows:,} rows for {population:,} keys of the population"
    passed = job.checks.coverage <= share <= 1.0 and rows > 0
    return Check(name="rows", passed=passed, found=share, limit=job.checks.coverage, detail=detail)


def _distinct(rows: int, duplicates: int) -> Check:
    detail = f"{duplicates:,} of {rows:,} rows have the key of another row; each key must be one row"
    return Check(name="distinct", passed=not duplicates, found=float(duplicates), limit=0.0, detail=detail)


def _column(job: BatchJob, name: str, found: Distribution) -> list[Check]:
    nulls, same = job.checks.max_null_share, job.checks.max_same_share
    checks = [
        Check(
            name=f"nulls:{name}", passed=found.null_share <= nulls, found=found.null_share, limit=nulls,
            detail=f"{found.nulls:,} of {found.rows:,} rows of {name} hold no value",
        )
    ]  # fmt: skip
    if found.values:
        detail = f"the commonest value of {name} makes {found.same_share:.1%} of all"
        # One row is always the same as itself.
        passed = found.same_share <= same or found.values == 1
        checks.append(Check(name=f"same:{name}", passed=passed, found=found.same_share, limit=same, detail=detail))
    return checks


def _drift(job: BatchJob, name: str, before: Mapping[int, int], now: Distribution, release: str) -> Check:
    index, chance = psi(before, now.coarse)
    limit = job.checks.max_psi + chance
    detail = f"population stability index of {name} against the last published run is {index:.3f}"
    if release:
        detail += f"; that one was scored with {release}"
    return Check(name=f"drift:{name}", passed=index <= limit, found=index, limit=limit, detail=detail)
