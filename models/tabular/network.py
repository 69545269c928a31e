"""A tabular network while it learns: an ensemble of small perceptrons over piecewise-linear encodings.

Members share the encodings and differ in their random start; their logits are averaged. What they learn in float32
is then put on a binary grid as a `model_release.exact_network.ExactNetwork`, which is what a release runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from model_release.exact_network import ENCODING_BITS, Encoding, ExactNetwork, Layer
from numpy.typing import NDArray
from torch import Tensor, nn

WEIGHT_BITS = 12
HIDDEN_BITS = 10
OUTPUT_BITS = 16
HIDDEN_CAP = 64.0
LOGIT_BITS = 11
TABLE_SIZE = 2**16
LOGIT_STEP = 2.0**-LOGIT_BITS


@dataclass(frozen=True, slots=True)
class Shape:
    """`members` perceptrons with hidden layers of these widths."""

    members: int = 4
    hidden: tuple[int, ...] = (32, 16)


class Ensemble(nn.Module):
    """float32 [n, E] (shared) -> logits float32 [members, n]."""

    def __init__(self, inputs: int, shape: Shape, start_logit: float, generator: torch.Generator) -> None:
        super().__init__()
        widths = [inputs, *shape.hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for number, (wide, narrow) in enumerate(pairwise(widths)):
            spread = math.sqrt((2.0 if number else 1.0) / wide)
            draw = torch.randn(shape.members, wide, narrow, generator=generator) * spread
            self.weights.append(nn.Parameter(draw))
            self.biases.append(nn.Parameter(torch.zeros(shape.members, 1, narrow)))
        with torch.no_grad():
            self.biases[-1].fill_(start_logit)

    def forward(self, encoded: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        members, inputs, width = self.weights[0].shape
        # One wide product for all members: they read the same rows.
        wide = encoded @ self.weights[0].transpose(0, 1).reshape(inputs, members * width)
        hidden = wide.view(-1, members, width).transpose(0, 1) + self.biases[0]
        for weights, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = torch.relu(hidden)
            if dropout:
                kept = torch.empty_like(hidden).bernoulli_(1.0 - dropout, generator=generator)
                hidden = hidden * kept / (1.0 - dropout)
            hidden = torch.bmm(hidden, weights) + bias
        logits: Tensor = hidden[..., 0]
        return logits


def exact(encoding: Encoding, ensemble: Ensemble, table: NDArray[np.float32]) -> ExactNetwork:
    """The ensemble's mean logit on the binary grid, through `table` (float32 [TABLE_SIZE], step LOGIT_STEP)."""
    count = len(ensemble.weights)
    layers = []
    bits = ENCODING_BITS
    for number, (weights, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        last = number == count - 1
        # The mean over members: each one's output counts for its share.
        share = 1.0 / len(weights) if last else 1.0
        grid = OUTPUT_BITS if last else WEIGHT_BITS
        after = LOGIT_BITS if last else HIDDEN_BITS
        layers.append(
            Layer(
                weights=np.rint(weights.detach().double().numpy() * share * 2.0**grid),
                bias=np.rint(bias.detach().double().numpy()[:, 0, :] * share * 2.0 ** (bits + grid)),
                shift=bits + grid - after,
                cap=HIDDEN_CAP * 2.0**HIDDEN_BITS,
            )
        )
        bits = HIDDEN_BITS
    return ExactNetwork(encoding, layers, table)


def logits(network: ExactNetwork, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 [n]: the exact network's logits, before the table turns them into probabilities."""
    if not len(rows):
        return np.zeros(0)
    with torch.inference_mode():
        parts = [
            network.positions(torch.from_numpy(part)).numpy() for part in np.array_split(rows, 1 + len(rows) // 8192)
        ]
    return (np.concatenate(parts) - TABLE_SIZE // 2) * LOGIT_STEP
