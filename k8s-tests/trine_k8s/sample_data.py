"""Releases and a dataset of seconds, real in every file: written once and kept below .run/k8s-tests by content."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from model_release import Release
from model_release.testing import toy_batch_policy, write_toy_release

from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from trine_k8s.images import ROOT

#: The job card-risk reads the last 30.
_DAYS = 40
_MADE_BY = (
    "services/model-release/model_release",
    "services/feature-store/feature_store",
    "models/torchserve",
    "models/fraud",
)


def releases(*seeds: int) -> tuple[Path, list[Release]]:
    """A folder with a release a seed, and they."""
    made_by = hashlib.sha256()
    for path in sorted(path for part in _MADE_BY for path in (ROOT / part).glob("*.py")):
        made_by.update(path.read_bytes())
    name = "-".join(map(str, seeds))
    folder = ROOT / ".run" / "k8s-tests" / f"releases-{made_by.hexdigest()[:12]}-{name}"
    batch = toy_batch_policy("customer", "terminal")
    return folder, [write_toy_release(folder, PLAN, seed=seed, batch=batch) for seed in seeds]


def dataset(folder: Path, customers: int = 60) -> Path:
    """Transactions of the days up to yesterday, as in a warehouse."""
    start = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=_DAYS)
    generate(GeneratorParameters(customers=customers, terminals=80, days=_DAYS, start=start), folder)
    return folder


def busiest_customer(dataset: Path) -> str:
    """Of the last day: one that the job surely has a prediction for."""
    last = max((dataset / "transactions").glob("*.parquet"))
    found = Counter(pq.read_table(last, columns=["customer_id"]).column("customer_id").to_pylist())
    return str(found.most_common(1)[0][0])
