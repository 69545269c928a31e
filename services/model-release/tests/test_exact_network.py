"""The exact network: the same bits however its rows are cut, ordered and threaded; equal to whole-number arithmetic."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_release import scoring_module
from model_release.exact_network import ENCODING_BITS, Encoding, ExactNetwork, Layer, logistic_table
from model_release.testing import toy_network, toy_rows

FEATURES = 15


def deep_network(seed: int = 5) -> ExactNetwork:
    """Three members, two hidden layers, one quotient."""
    rng = np.random.default_rng(seed)
    encoding = Encoding(
        numerator=np.array([0]),
        denominator=np.array([3]),
        feature=np.repeat(np.arange(FEATURES + 1), 4),
        start=np.tile([0.0, 10.0, 100.0, 1000.0], FEATURES + 1),
        scale=np.tile([0.1, 1 / 90, 1 / 900, 1 / 99_000], FEATURES + 1),
    )

    def whole(*shape: int) -> np.ndarray:
        return rng.integers(-4000, 4000, shape).astype(np.float64)

    layers = [
        Layer(whole(3, 64, 16), whole(3, 16), shift=9, cap=2.0**16),
        Layer(whole(3, 16, 8), whole(3, 8), shift=12, cap=2.0**16),
        Layer(whole(3, 8, 1), whole(3, 1), shift=13, cap=0.0),
    ]
    return ExactNetwork(encoding, layers, logistic_table(1.0, 0.0, 2.0**-8, 2**13))


@pytest.fixture(scope="module", params=["toy", "deep"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> scoring_module.ScoringModule:
    file = tmp_path_factory.mktemp(request.param) / "module.pt2"
    scoring_module.export(toy_network(FEATURES) if request.param == "toy" else deep_network(), FEATURES, file)
    return scoring_module.load(file)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 299), max_size=5),
    threads=st.sampled_from([1, 2]),
)
def test_same_bits_for_any_batch_order_and_threads(
    module: scoring_module.ScoringModule, rows: int, seed: int, cuts: list[int], threads: int
) -> None:
    inputs = toy_rows(FEATURES, seed, rows)
    expected = np.concatenate([module(inputs[i : i + 1]) for i in range(rows)]).view(np.int32)
    order = np.random.default_rng(seed).permutation(rows)
    torch.set_num_threads(threads)
    try:
        whole = module(inputs[order]).view(np.int32)
        parts = [module(part) for part in np.split(inputs, sorted({c for c in cuts if c < rows}))]
    finally:
        torch.set_num_threads(1)
    assert (whole == expected[order]).all()
    assert (np.concatenate(parts).view(np.int32) == expected).all()


def test_equals_rational_arithmetic() -> None:
    """Every step in Python's own whole numbers and fractions, sharing nothing with torch."""
    network = deep_network()
    inputs = toy_rows(FEATURES, 9, 40)
    found = network.positions(torch.from_numpy(inputs)).numpy()
    assert [_by_fractions(network, row) for row in inputs] == found.tolist()
    assert len(set(found.tolist())) > 20


def _by_fractions(network: ExactNetwork, row: np.ndarray) -> int:
    buffers = {name: value.numpy() for name, value in network.named_buffers()}
    columns = [float(v) for v in row] + [float(row[0]) / max(float(row[3]), 1.0)]
    z = []
    for feature, start, scale in zip(
        buffers["encoder.feature"], buffers["encoder.start"], buffers["encoder.scale"], strict=True
    ):
        place = min(max((columns[feature] - float(start)) * float(scale), 0.0), 1.0) * 2**ENCODING_BITS
        z.append(round(place))
    total = int(buffers["bias_out"])
    for member in range(3):
        wide = [
            sum(a * int(w) for a, w in zip(z, buffers["weights_0"][:, member * 16 + k], strict=True))
            + int(buffers["bias_0"][0, member * 16 + k])
            for k in range(16)
        ]
        h = [min(max(round(Fraction(v, 2**9)), 0), 2**16) for v in wide]
        deep = [
            sum(a * int(w) for a, w in zip(h, buffers["weights_1"][member, :, k], strict=True))
            + int(buffers["bias_1"][member, 0, k])
            for k in range(8)
        ]
        g = [min(max(round(Fraction(v, 2**12)), 0), 2**16) for v in deep]
        total += sum(a * int(w) for a, w in zip(g, buffers["weights_out"][member], strict=True))
    return min(max(round(Fraction(total, 2**13)) + 2**12, 0), 2**13 - 1)


def test_no_transcendental_operation_in_the_export(tmp_path: Path) -> None:
    scoring_module.export(deep_network(), FEATURES, tmp_path / "module.pt2")
    program = torch.export.load(tmp_path / "module.pt2")
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    exact = {"to", "index_select", "clamp", "cat", "div", "sub", "mul", "round", "matmul", "add", "bmm"}
    moves = {"view", "transpose", "flatten", "_assert_tensor_metadata"}
    assert {name.split(".")[1] for name in used} <= exact | moves
    assert used


def test_same_network_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "module.pt2", tmp_path / "b" / "module.pt2"
    for file in (first, second):
        file.parent.mkdir()
        scoring_module.export(deep_network(), FEATURES, file)
    assert first.read_bytes() == second.read_bytes()
    scoring_module.export(deep_network(seed=6), FEATURES, second)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :5], "need float32"),
        (lambda a: a.astype(np.float64), "need float32"),
        (lambda a: a[:0], "need float32"),
        (lambda a: np.where(np.arange(FEATURES) == 4, np.float32(np.nan), a), "row 0, column 4 is nan"),
        (lambda a: np.where(np.arange(FEATURES) == 2, np.float32(np.inf), a), "row 0, column 2 is inf"),
    ],
)
def test_wrong_rows_are_refused(module: scoring_module.ScoringModule, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message):
        module(change(toy_rows(FEATURES)))


def test_inexact_weights_are_refused() -> None:
    encoding = Encoding(*(np.array([], dtype=np.int64),) * 2, np.array([0]), np.array([0.0]), np.array([1.0]))
    table = logistic_table(1.0, 0.0, 0.5, 16)

    def layers(weight: float, cap: float) -> list[Layer]:
        one = np.array([[[weight]]])
        return [Layer(one, np.zeros((1, 1)), 0, cap), Layer(one, np.zeros((1, 1)), 0, 0.0)]

    ExactNetwork(encoding, layers(2.0**20, 2.0**32), table)
    with pytest.raises(ValueError, match="not below 2\\^53"):
        ExactNetwork(encoding, layers(2.0**20, 2.0**33), table)
    with pytest.raises(ValueError, match="whole numbers"):
        ExactNetwork(encoding, layers(0.5, 8.0), table)


@given(slope=st.floats(0.05, 8), intercept=st.floats(-12, 12))
@settings(max_examples=50, deadline=None)
def test_table_is_a_strictly_increasing_probability(slope: float, intercept: float) -> None:
    table = logistic_table(slope, intercept, 2.0**-11, 2**16)
    assert (np.diff(table) > 0).all()
    assert table[0] > 0
    assert table[-1] < 1
    logits = (np.arange(2**16) - 2**15) * 2.0**-11
    truth = 1 / (1 + np.exp(-(slope * logits + intercept)))
    assert np.abs(table - truth).max() < 0.005
