"""A small dataset, and a release trained on it in seconds; made once, not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.release_training import Trained, train_release
from models.fraud.testing import CHOICES, FOLD


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cards"
    generate(GeneratorParameters(customers=600, terminals=1200, days=75, seed=3), path)
    return path


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_release(dataset, tmp_path_factory.mktemp("releases"), FOLD, CHOICES)
