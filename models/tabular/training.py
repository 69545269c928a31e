"""Fitting the ensemble to the teachers' soft labels: deterministic by seed, whatever the number of cores.

The members learn in GROUPS threads of one torch thread each; a group's batches, starts and dropout come from its own
generator, so that neither scheduling nor the machine's cores can change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from model_release.exact_network import Encoding
from numpy.typing import NDArray
from torch import Tensor, nn

from models.tabular.encoding import Quotients, columns_of, encode, encoding_of
from models.tabular.errors import TooLittleData
from models.tabular.network import Ensemble, Shape
from models.tabular.teacher import soft_labels

GROUPS = 2
MIN_POSITIVE = 20
SUSPICIOUS = 0.05
TEACHING = 0.5
"""Share of the work that the teachers are, for progress."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how a network is fitted.

    `keep`: the share of unsuspicious rows (not positive, and a soft label below SUSPICIOUS) that each epoch draws anew.
    `least_steps`: more epochs where the data are so few that `epochs` of them would be fewer batches than this.
    """

    shape: Shape = field(default_factory=Shape)
    epochs: int = 40
    least_steps: int = 400
    batch: int = 512
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    dropout: float = 0.1
    keep: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained ensemble and the encoding that it reads."""

    encoding: Encoding
    ensemble: Ensemble


def fit(
    features: tuple[str, ...],
    rows: NDArray[np.float32],
    positive: NDArray[np.bool_],
    recipe: Recipe,
    quotients: Quotients = (),
    advance: Callable[[float], None] = lambda _: None,
) -> Fitted:
    """Trains on rows float32 [n, F] with labels bool [n]; the network also sees `quotients` of the features.

    `advance` is called from several threads with shares of the work, which add up to 1.

    Raises:
        TooLittleData: fewer than MIN_POSITIVE rows are positive, or all of them.
    """
    found = int(positive.sum())
    if found < MIN_POSITIVE or found == len(positive):
        raise TooLittleData(
            f"training: {found} of {len(positive)} rows are positive, need at least {MIN_POSITIVE} and others beside "
            "them"
        )
    if recipe.shape.members % GROUPS:
        raise ValueError(f"members: must be a multiple of {GROUPS}, is {recipe.shape.members}")
    encoding = encoding_of(features, rows, positive, quotients)
    soft = soft_labels(
        columns_of(features, rows, quotients), positive, recipe.seed, lambda share: advance(share * TEACHING)
    )
    encoded, labels = encode(encoding, rows), torch.from_numpy(soft)
    always = torch.from_numpy(positive | (soft >= SUSPICIOUS))
    share = replace(recipe.shape, members=recipe.shape.members // GROUPS)
    with ThreadPoolExecutor(GROUPS) as pool:
        groups = list(
            pool.map(
                lambda group: _fit_group(encoded, labels, always, replace(recipe, shape=share), group, advance),
                range(GROUPS),
            )
        )
    return Fitted(encoding, _joined(groups, recipe.shape))


def _fit_group(
    encoded: Tensor, labels: Tensor, always: Tensor, recipe: Recipe, group: int, advance: Callable[[float], None]
) -> Ensemble:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(recipe.seed * GROUPS + group)
    base = float(labels.mean())
    ensemble = Ensemble(encoded.shape[1], recipe.shape, math.log(base / (1 - base)), generator)
    kept, others = torch.nonzero(always).flatten(), torch.nonzero(~always).flatten()
    drawn = round(len(others) * recipe.keep)
    # What is drawn less often counts for more, so that the network still learns the true odds.
    weight_of = torch.where(always, 1.0, len(others) / max(drawn, 1))
    size = len(kept) + drawn
    per_epoch = math.ceil(size / recipe.batch)
    epochs = max(recipe.epochs, math.ceil(recipe.least_steps / per_epoch))
    optimizer = torch.optim.AdamW(
        ensemble.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=epochs * per_epoch, pct_start=0.2
    )
    for _ in range(epochs):
        some = others[torch.randperm(len(others), generator=generator)[:drawn]]
        order = torch.cat([kept, some])[torch.randperm(size, generator=generator)]
        for chosen in torch.split(order, recipe.batch):
            logits = ensemble(encoded[chosen], recipe.dropout, generator)
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, labels[chosen].expand_as(logits), weight_of[chosen].expand_as(logits), reduction="none"
            )
            optimizer.zero_grad()
            # The sum over members: each is trained as if alone.
            losses.mean(1).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        advance((1.0 - TEACHING) / (epochs * GROUPS))
    return ensemble


def _joined(groups: list[Ensemble], shape: Shape) -> Ensemble:
    """One ensemble of all groups' members."""
    whole = Ensemble(groups[0].weights[0].shape[1], shape, 0.0, torch.Generator())
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.copy_(torch.cat([dict(group.named_parameters())[name] for group in groups]))
    return whole
