"""Fitting the two towers: given a part of a user's history, tell the items of the other part.

    z = sum(weight * vector[item]) / sqrt(sum(weight^2))     over the part that is shown
    p = softmax(z Q + bias)                                  over the items that are not shown
    loss = -sum(share * log p)                               share: of the hidden items, by weight

The multinomial likelihood is that of Liang et al., "Variational Autoencoders for Collaborative Filtering", 2018; that
shown items are no targets, of Steck, "Autoencoders that don't overfit towards the Identity", 2020. Deterministic by
seed, whatever the number of cores: torch gets one thread, which is also the fastest where others use the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped, unused-ignore]
from sklearn.utils.extmath import randomized_svd  # type: ignore[import-untyped, unused-ignore]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from models.recommender.errors import TooLittleData
from models.recommender.histories import FULL_WEIGHT, Histories
from models.recommender.recipe import Recipe

_SHOWN = -1e4


@dataclass(frozen=True, slots=True, eq=False)
class Towers:
    """vectors float32 [I, d]: of items in a history; targets float32 [I, d] and bias float32 [I]: of items ranked."""

    vectors: NDArray[np.float32]
    targets: NDArray[np.float32]
    bias: NDArray[np.float32]


def fit(histories: Histories, items: int, recipe: Recipe, advance: Callable[[float], None] = lambda _: None) -> Towers:
    """Fits on users with two items or more. `advance` gets shares of the work, which add up to 1.

    Raises TooLittleData: there are none, or there is only one item.
    """
    users = np.flatnonzero(histories.lengths >= 2)
    if not len(users) or items < 2:
        raise TooLittleData(f"training: {len(users)} users with two items or more, {items} items; more are needed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(histories, users, items, recipe, advance)
    finally:
        torch.set_num_threads(threads)


def _fit(
    histories: Histories, users: NDArray[np.int64], items: int, recipe: Recipe, advance: Callable[[float], None]
) -> Towers:
    generator = torch.Generator().manual_seed(recipe.seed)
    popularity = np.bincount(histories.items, histories.weights, minlength=items) / FULL_WEIGHT
    start = torch.from_numpy(_start(histories, items, recipe))
    vectors, targets = nn.Parameter(start.clone()), nn.Parameter(2.0 * start)
    bias = nn.Parameter(torch.from_numpy(np.log(popularity + 1.0).astype(np.float32)))
    groups: list[dict[str, Any]] = [{"params": [vectors, targets], "weight_decay": recipe.l2}, {"params": [bias]}]
    optimizer = torch.optim.Adam(groups, recipe.learning_rate)
    per_epoch = -(-len(users) // recipe.batch)
    least, most = -(-recipe.least_steps // per_epoch), max(1, recipe.most_steps // per_epoch)
    epochs = min(max(recipe.epochs, least), most)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=epochs * per_epoch, pct_start=0.1
    )
    for _ in range(epochs):
        for some in torch.split(torch.randperm(len(users), generator=generator), recipe.batch):
            weights = _dense(histories.of(users[some.numpy()]), items)
            hidden = torch.rand(weights.shape, generator=generator) < recipe.hidden
            loss = _loss(weights, hidden, vectors, targets, bias)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        advance(1.0 / epochs)
    return Towers(*(one.detach().numpy() for one in (vectors, targets, bias)))


def _start(histories: Histories, items: int, recipe: Recipe) -> NDArray[np.float32]:
    """float32 [I, d]: the items' directions in which normalised histories differ most; small and random beyond."""
    user, weights = histories.user, histories.weights / FULL_WEIGHT
    norms = np.sqrt(np.bincount(user, weights**2, minlength=len(histories.starts)))[user]
    matrix = csr_matrix((weights / np.maximum(norms, 1e-9), (user, histories.items)), (len(histories.starts), items))
    start = np.random.default_rng(recipe.seed).normal(0.0, 0.01, (items, recipe.dimensions))
    rank = min(recipe.dimensions, *matrix.shape)
    with threadpool_limits(1):
        directions = randomized_svd(matrix, rank, random_state=recipe.seed)[2]
    start[:, :rank] = directions.T
    return start.astype(np.float32)


def _dense(histories: Histories, items: int) -> Tensor:
    """float32 [n, I]: weights, 1 for a full one, 0 for items that are not in the history."""
    weights = torch.zeros(len(histories.starts), items)
    shares = (histories.weights / FULL_WEIGHT).astype(np.float32)
    weights[torch.from_numpy(histories.user), torch.from_numpy(histories.items)] = torch.from_numpy(shares)
    return weights


def _loss(weights: Tensor, hidden: Tensor, vectors: Tensor, targets: Tensor, bias: Tensor) -> Tensor:
    shown = weights.masked_fill(hidden, 0.0)
    wanted = weights - shown
    z = shown @ vectors / torch.sqrt(shown.square().sum(1, keepdim=True)).clamp(min=1e-3)
    scores = torch.addmm(bias, z, targets.T).masked_fill(shown > 0, _SHOWN)
    told = (torch.log_softmax(scores, 1) * wanted).sum(1)
    return -(told / wanted.sum(1).clamp(min=1e-3)).mean()
