"""The user tower of a recommender in exact arithmetic: a history's items in, the user's embedding out.

    z = sum(weight * vector[item]) / sqrt(sum(weight^2))      over the history; 0 where it is empty
    u = round(z * 2^shift) * 2^-step_bits, clamped; and a 1   float32 [D]: the 1 meets the items' bias

`vector` and `weight` are whole numbers whose products and sums stay below 2^53 in float64: exact in any order, so an
embedding depends neither on the batch it was computed in nor on the order of the history, nor on the machine: division
and square root are correctly rounded by IEEE 754. The embeddings' components are whole multiples of a step, at most
2^VALUE_BITS steps; a dot product of two of up to MOST_DIMENSIONS components is exact in float64 for the same reason.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_release.errors import ReleaseError
from model_release.manifest import MODULE_FILE
from model_release.scoring_module import without_traces

VALUE_BITS = 21
MOST_DIMENSIONS = 1024
VECTOR_BITS = 20
MOST_WEIGHT = 2048
LONGEST_HISTORY = 2**20
"""Longer ones would still be right but for the last bit."""


class UserTower(nn.Module):
    """(items int64 [m], weights float64 [m], starts int64 [n]) -> float32 [n, D].

    User k's history is items[starts[k] : starts[k + 1]], the last one's goes to the end. Weights are whole numbers.

    Args:
        vectors: float64 [I, D - 1], whole numbers up to 2^VECTOR_BITS.
        shift: of z, to steps. step_bits: the embeddings' step is 2^-step_bits, 0 to VALUE_BITS.

    Raises:
        ValueError: vectors that are not such, or too many dimensions.
    """

    vectors: Tensor
    ones: Tensor

    def __init__(self, vectors: NDArray[np.float64], shift: int, step_bits: int) -> None:
        super().__init__()
        if vectors.ndim != 2 or not 1 <= vectors.shape[1] < MOST_DIMENSIONS or vectors.dtype != np.float64:
            raise ValueError(f"vectors: need float64 [items, 1 to {MOST_DIMENSIONS - 1}], found {vectors.shape}")
        if (vectors != np.rint(vectors)).any() or not (np.abs(vectors) <= 2**VECTOR_BITS).all():
            raise ValueError(f"vectors: must be whole numbers up to 2^{VECTOR_BITS}")
        if not 0 <= step_bits <= VALUE_BITS:
            raise ValueError(f"step_bits: is {step_bits}, must be 0 to {VALUE_BITS}")
        self.register_buffer("vectors", torch.from_numpy(vectors.copy()))
        self.register_buffer("ones", torch.ones(1, 1, dtype=torch.float64))
        self._scale, self._step, self._limit = 2.0**shift, 2.0**-step_bits, 2.0**VALUE_BITS

    def forward(self, items: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
        bag = nn.functional.embedding_bag
        sums = bag(items, self.vectors, starts, mode="sum", per_sample_weights=weights)
        squares = bag(torch.zeros_like(items), self.ones, starts, mode="sum", per_sample_weights=weights * weights)
        z = sums / torch.sqrt(torch.clamp(squares, min=1.0))
        steps = torch.clamp(torch.round(z * self._scale), -self._limit, self._limit)
        return torch.cat([steps * self._step, torch.ones_like(squares)], 1).to(torch.float32)


class UserTowerModule:
    """A loaded tower."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._module = program.module(check_guards=False)

    def __call__(
        self, items: NDArray[np.int64], weights: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """float32 [n, D] for histories as `UserTower` has them; n and m may be 0."""
        # One more user, of one item: neither number is ever 0 for the module.
        with torch.inference_mode():
            found = self._module(
                torch.from_numpy(np.append(items, 0)),
                torch.from_numpy(np.append(weights, 1).astype(np.float64)),
                torch.from_numpy(np.append(starts, len(items))),
            )
        embeddings: NDArray[np.float32] = found.numpy()[:-1]
        return embeddings


def export_tower(tower: UserTower, file: Path) -> None:
    """Exports the tower to `file`, which must be called module.pt2; equal towers give equal bytes.

    torch traces with state that all threads share: while one thread is here, no other may make or run a network.
    """
    if file.name != MODULE_FILE:
        raise ReleaseError(f"{file}: must be named {MODULE_FILE}")
    entries, users = torch.export.Dim("entries", min=1), torch.export.Dim("users", min=1)
    example = (torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.float64), torch.tensor([0, 2, 3]))
    shapes = ({0: entries}, {0: entries}, {0: users})
    program = torch.export.export(tower.eval(), example, dynamic_shapes=shapes)
    torch.export.save(without_traces(program), file)


def load_tower(path: Path | str) -> UserTowerModule:
    """Loads module.pt2 and sets torch to one thread: users come in parallel, not sums. Raises ReleaseError."""
    torch.set_num_threads(1)
    try:
        return UserTowerModule(torch.export.load(path))
    except Exception as error:
        raise ReleaseError(f"{path}: not a module that can be run: {error}") from error
