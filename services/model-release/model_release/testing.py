"""A toy release for tests of gateway, worker and model server: real in every file, random in its opinions."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from feature_store.definitions import FeaturePlan
from numpy.typing import NDArray

from model_release.exact_network import Encoding, ExactNetwork, Layer, logistic_table
from model_release.manifest import BatchPolicy, History, Policy, Prior, Rule, Thresholds
from model_release.recommender import RecommenderRelease
from model_release.recommender_writer import RecommenderDraft, write_recommender
from model_release.release import Release
from model_release.user_tower import VALUE_BITS, VECTOR_BITS, UserTower
from model_release.writer import Draft, write_release

SEGMENTS = 8
WIDTH = 16


def toy_network(features: int, seed: int = 0) -> ExactNetwork:
    """A small random exact network; scores of `toy_rows` spread over 0..1."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([[0.0], np.logspace(-1, 5, SEGMENTS)])
    encoding = Encoding(
        numerator=np.array([0]),
        denominator=np.array([features - 1]),
        feature=np.repeat(np.arange(features), SEGMENTS),
        start=np.tile(edges[:-1], features),
        scale=np.tile(1.0 / np.diff(edges), features),
    )
    first = rng.integers(-500, 500, (1, features * SEGMENTS, WIDTH)).astype(np.float64)
    last = rng.integers(-500, 500, (1, WIDTH, 1)).astype(np.float64)
    hidden = Layer(first, np.zeros((1, WIDTH)), shift=7, cap=2.0**16)
    output = Layer(last, np.zeros((1, 1)), shift=0, cap=0.0)
    # A table that is a ramp gives the sums themselves, roughly; they are then centred and scaled to logits.
    ramp = ExactNetwork(encoding, [hidden, replace(output, shift=9)], np.arange(2**17, dtype=np.float32))
    sums = (ramp(torch.from_numpy(toy_rows(features, seed))).numpy() - 2.0**16) * 2**9
    centred = replace(output, bias=np.rint([[-np.median(sums)]]), shift=int(np.log2(sums.std() / 256)))
    return ExactNetwork(encoding, [hidden, centred], logistic_table(1.0, 0.0, step=2.0**-7, size=4096))


def toy_rows(features: int, seed: int = 0, rows: int = 256) -> NDArray[np.float32]:
    """Random rows, float32 [rows, features], whole numbers from 1 to 100,000, most of them small."""
    rng = np.random.default_rng(seed + 1)
    return np.floor(10.0 ** rng.uniform(0, 5, (rows, features))).astype(np.float32)


def write_toy_release(
    releases: Path | str,
    plan: FeaturePlan,
    features: tuple[str, ...] | None = None,
    seed: int = 0,
    handler: Path | None = None,
    batch: BatchPolicy | None = None,
) -> Release:
    """Writes a release of random weights for `plan` into `releases`; another seed is another release.

    Args:
        features: the plan's order, for callers who want it checked (raises ValueError where it differs).
        handler: the TorchServe handler; None: the repository's own.
        batch: how batch scores take part; see `toy_batch_policy`.
    """
    if features is not None and tuple(features) != plan.features:
        raise ValueError(f"features: {features} are not the plan's {plan.features}")
    draft = Draft(
        plan=plan,
        network=toy_network(len(plan.features), seed),
        golden_inputs=toy_rows(len(plan.features), seed),
        model_card=f"# Toy release of {plan.model}, seed {seed}\n\nRandom weights, for tests.\n",
        thresholds=Thresholds(review=0.25, deny=0.75),
        threshold_basis="fixed, for tests",
        calibration={"method": "none"},
        policy=Policy(
            unrecorded="refuse",
            base_score=0.0078125,
            deny_precision=0.75,
            rules=(
                Rule(name="large", feature=plan.features[0], at_least=22_000.0, score=0.875, precision_bound=0.8125),
            ),
            batch=batch,
        ),
        metrics={},
        training={"seed": seed},
    )
    return write_release(releases, draft, handler or handler_path())


def toy_batch_policy(*entities: str, job: str = "card-risk") -> BatchPolicy:
    """Risks of these entities count alike, and as much as the rules; decided at 0.25 and 0.75."""
    thresholds = Thresholds(review=0.25, deny=0.75)
    priors = tuple(
        Prior(
            entity=entity, mean=0.0625, strength=8.0, factor=1.0, sixteenths=16,
            thresholds=thresholds, threshold_basis="fixed, for tests",
        )
        for entity in entities
    )  # fmt: skip
    return BatchPolicy(
        job=job, priors=priors, factor=4.0, prior_sixteenths=(13,) * len(entities), combined_factor=2.0,
        rules_sixteenths=9, batch_sixteenths=11, thresholds=thresholds, threshold_basis="fixed, for tests",
    )  # fmt: skip


def write_toy_recommender(releases: Path | str, items: int = 40, seed: int = 0) -> RecommenderRelease:
    """Writes a recommender of random vectors for items `i0`, `i1`, ...; another seed is another release."""
    random = np.random.default_rng(seed)
    dimensions = 8
    vectors = random.integers(-(2**VECTOR_BITS), 2**VECTOR_BITS, (items, dimensions - 1)).astype(np.float64)
    embeddings = random.integers(-(2**VALUE_BITS), 2**VALUE_BITS, (items, dimensions)) * 2.0**-18
    draft = RecommenderDraft(
        model="recommender",
        tower=UserTower(vectors, shift=-2, step_bits=18),
        item_ids=tuple(f"i{number}" for number in range(items)),
        item_embeddings=embeddings.astype(np.float32),
        item_popularity=random.integers(0, 1000, items),
        history=History(age_weights=(1024, 512, 256), typical_values={"view": 0.5}),
        model_card=f"# Toy recommender, seed {seed}\n\nRandom vectors, for tests.\n",
        metrics={},
        training={"seed": seed},
    )
    return write_recommender(releases, draft)


def handler_path() -> Path:
    """The repository's one handler for tabular models; found without importing it. Raises FileNotFoundError."""
    package = importlib.util.find_spec("models.torchserve")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the package models.torchserve is not installed; pass `handler`")
    return Path(next(iter(package.submodule_search_locations))) / "handler.py"
