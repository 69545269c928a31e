"""Data and model of the demo: made on the first run, found on the next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from feature_store.dataset import DAY_US
from model_release import Release, ReleaseError, open_release

from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.protocol import Fold
from models.fraud.release_training import Choices, train_release
from trine_cli.demo.scenario import Scenario

Advance = Callable[[float], None]
"""Told of steps done; the step's total is in its name below."""

DATASET_STEPS_PER_DAY = 2
TRAINING_STEPS = 2


def prepare_dataset(scenario: Scenario, advance: Advance) -> tuple[dict[str, Any], bool]:
    """The description of the dataset, and whether it was made now."""
    return generate(scenario.parameters, scenario.dataset, overwrite=True, advance=advance)


def prepare_release(scenario: Scenario, dataset: dict[str, Any], advance: Advance) -> tuple[Release, bool]:
    """The release trained on the history before the demo's day, and whether it was trained now."""
    fold = Fold(scenario.day_us // DAY_US)
    choices = Choices()
    wanted = {
        "dataset": {name: dataset[name] for name in ("process", "parameters")},
        "fold": asdict(fold),
        "choices": asdict(choices),
        "plan": PLAN.fingerprint,
    }
    note = scenario.folder / "trained.json"
    wanted = json.loads(json.dumps(wanted))
    try:
        known = json.loads(note.read_text())
        if known["made_of"] == wanted:
            return open_release(scenario.releases / known["release"]), False
    except (OSError, ValueError, KeyError, ReleaseError):
        pass
    # Older ones of this folder would be loaded too, each by a worker of its own.
    shutil.rmtree(scenario.releases, ignore_errors=True)
    release = train_release(scenario.dataset, scenario.releases, fold, choices, advance).release
    note.write_text(json.dumps({"made_of": wanted, "release": release.id}, indent=1))
    return release, True
