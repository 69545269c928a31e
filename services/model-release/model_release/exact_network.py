"""A tabular network in exact arithmetic: the same bits for any batch size, order of rows, thread count and CPU.

    x   = inputs, then quotients x[i] / max(x[j], 1) of declared pairs         float64
    z   = round(clamp((x[feature] - start) * scale, 0, 1) * 2^ENCODING_BITS)   whole numbers: position in a segment
    h   = clamp(round((z W + b) * 2^-shift), 0, cap)                           hidden layers, a member each
    out = table[clamp(round((h w + b) * 2^-shift) + middle, 0, size - 1)]      calibrated probability, float32

Every product and sum is a whole number below 2^53 in float64, hence exact, so the order in which a matrix product
adds does not matter. The other operations are elementwise and correctly rounded by IEEE 754; none is transcendental:
the logistic and calibration live in the table. Piecewise-linear encodings: Gorishniy et al., "On Embeddings for
Numerical Features in Tabular Deep Learning", 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ENCODING_BITS = 7
EXACT_LIMIT = 2.0**53


@dataclass(frozen=True, slots=True)
class Encoding:
    """Segments of columns: segment e of column `feature[e]` runs from `start[e]` over a length of 1 / `scale[e]`.

    Columns are the F inputs, followed by the quotients: input `numerator[k]` over input `denominator[k]`, the latter
    at least 1.
    """

    numerator: NDArray[np.int64]
    denominator: NDArray[np.int64]
    feature: NDArray[np.int64]
    start: NDArray[np.float64]
    scale: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """Whole numbers: weights [members, in, out], bias [members, out]; output times 2^-shift, hidden ones up to cap."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    shift: int
    cap: float


class Encoder(nn.Module):
    """float32 [n, F] -> float64 [n, E], whole numbers 0 to 2^ENCODING_BITS."""

    numerator: Tensor
    denominator: Tensor
    feature: Tensor
    start: Tensor
    scale: Tensor

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        for name in ("numerator", "denominator", "feature", "start", "scale"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(encoding, name))))
        self._quotients = len(encoding.numerator)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float64)
        if self._quotients:
            below = torch.clamp(x.index_select(1, self.denominator), min=1.0)
            x = torch.cat([x, x.index_select(1, self.numerator) / below], 1)
        z = (x.index_select(1, self.feature) - self.start) * self.scale
        return torch.round(torch.clamp(z, 0.0, 1.0) * 2.0**ENCODING_BITS)


class ExactNetwork(nn.Module):
    """float32 [n, F] -> float32 [n], a calibrated probability.

    Args:
        encoding: the segments, [E].
        layers: the first takes E inputs for every member; the last has one output, summed over the members.
        table: float32 [size], strictly increasing; its middle belongs to a logit of zero.

    Raises:
        ValueError: weights that are not whole numbers, a sum that could reach 2^53, shapes that do not fit.
    """

    def __init__(self, encoding: Encoding, layers: Sequence[Layer], table: NDArray[np.float32]) -> None:
        super().__init__()
        _check(encoding, layers, table)
        first, *hidden, last = layers
        members, _, width = first.weights.shape
        self._members, self._width = members, width
        self._shifts = [2.0**-layer.shift for layer in layers]
        self._caps = [layer.cap for layer in layers]
        self._middle, self._top = table.size // 2, table.size - 1
        self.table: Tensor
        self.encoder = Encoder(encoding)
        # All members read the same encodings: one wide product.
        self._keep("weights_0", first.weights.transpose(1, 0, 2).reshape(-1, members * width))
        self._keep("bias_0", first.bias.reshape(1, members * width))
        for number, layer in enumerate(hidden, start=1):
            self._keep(f"weights_{number}", layer.weights)
            self._keep(f"bias_{number}", layer.bias[:, None, :])
        self._hidden = len(hidden)
        # The members' logits are added up, so their last layers are one product over all of them.
        self._keep("weights_out", last.weights[:, :, 0])
        self._keep("bias_out", last.bias[:, 0].sum())
        self._keep("table", table)

    def _keep(self, name: str, values: NDArray[np.generic] | np.float64) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(values)))

    def with_table(self, table: NDArray[np.float32]) -> ExactNetwork:
        """The same network with other probabilities; raises ValueError for another size or order."""
        _check_table(table)
        if table.size != self.table.numel():
            raise ValueError(f"network: the table must have {self.table.numel()} entries, found {table.size}")
        other = copy.deepcopy(self)
        other.table = torch.from_numpy(np.array(table))
        return other

    def forward(self, x: Tensor) -> Tensor:
        return self.table.index_select(0, self.positions(x))

    def positions(self, x: Tensor) -> Tensor:
        """int64 [n]: where in the table each row's logit falls."""
        z = self.encoder(x) @ self.get_buffer("weights_0") + self.get_buffer("bias_0")
        z = torch.clamp(torch.round(z * self._shifts[0]), 0.0, self._caps[0])
        if self._hidden:
            z = z.view(-1, self._members, self._width).transpose(0, 1)
            for number in range(1, self._hidden + 1):
                z = torch.bmm(z, self.get_buffer(f"weights_{number}")) + self.get_buffer(f"bias_{number}")
                z = torch.clamp(torch.round(z * self._shifts[number]), 0.0, self._caps[number])
            z = z.transpose(0, 1).flatten(1)
        z = z @ self.get_buffer("weights_out").flatten() + self.get_buffer("bias_out")
        z = torch.clamp(torch.round(z * self._shifts[-1]) + self._middle, 0.0, float(self._top))
        return z.to(torch.int64)


def logistic_table(slope: float, intercept: float, step: float, size: int) -> NDArray[np.float32]:
    """The probability 1 / (1 + exp(-(slope * logit + intercept))) for logits (i - size // 2) * step, i < size.

    Strictly increasing in float32, so that calibration creates no ties: where rounding would, values near one give
    way downwards by single units in the last place. Raises ValueError where slope or step is not positive.
    """
    if not (slope > 0 and step > 0):
        raise ValueError(f"calibration: slope and step must be positive, found {slope} and {step}")
    logits = slope * (np.arange(size) - size // 2) * step + intercept
    table = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    table = np.clip(table, np.float32(2.0**-100), np.nextafter(np.float32(1), np.float32(0)))
    # Bit patterns of positive floats order as the floats do; one unit in the last place is one.
    bits = table.view(np.int32).astype(np.int64)
    ramp = np.arange(size)
    from_below = np.maximum.accumulate(bits - ramp) + ramp
    top = int(np.float32(1).view(np.int32)) - 1
    return np.minimum(from_below, top - (size - 1 - ramp)).astype(np.int32).view(np.float32)


def _check_table(table: NDArray[np.float32]) -> None:
    if table.dtype != np.float32 or not (np.diff(table) > 0).all():
        raise ValueError("network: the table must be float32 and strictly increasing")


def _check(encoding: Encoding, layers: Sequence[Layer], table: NDArray[np.float32]) -> None:
    segments = encoding.feature.shape
    if encoding.numerator.shape != encoding.denominator.shape:
        raise ValueError("network: every quotient needs a numerator and a denominator")
    if len(layers) < 2 or encoding.start.shape != segments or encoding.scale.shape != segments:
        raise ValueError("network: needs two or more layers and encodings of one length")
    if not (np.isfinite(encoding.start).all() and np.isfinite(encoding.scale).all() and (encoding.scale > 0).all()):
        raise ValueError("network: encodings must be finite, scales positive")
    _check_table(table)
    greatest, width = 2.0**ENCODING_BITS, segments[0]
    members = layers[0].weights.shape[0]
    for number, layer in enumerate(layers):
        if layer.weights.shape[:2] != (members, width) or layer.bias.shape != (members, layer.weights.shape[2]):
            raise ValueError(f"network: layer {number} has weights {layer.weights.shape}, bias {layer.bias.shape}")
        if (layer.weights != np.rint(layer.weights)).any() or (layer.bias != np.rint(layer.bias)).any():
            raise ValueError(f"network: layer {number} must have whole numbers as weights and bias")
        sums = np.abs(layer.weights).sum(axis=1) * greatest + np.abs(layer.bias)
        # The last layer adds the members up.
        reach = float(sums.sum() if number == len(layers) - 1 else sums.max())
        if not reach < EXACT_LIMIT:
            raise ValueError(f"network: layer {number} could reach {reach:.3g}, which is not below 2^53")
        greatest, width = layer.cap, layer.weights.shape[2]
    if width != 1:
        raise ValueError(f"network: the last layer must have one output, found {width}")
