"""The exported module: writing it reproducibly and running it, in training, model server, replay and Spark alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_release.errors import ReleaseError
from model_release.manifest import MODULE_FILE


class ScoringModule:
    """A loaded module: call it with float32 [n, F], n >= 1, and get float32 [n]."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        (inputs,) = program.graph_signature.user_inputs
        shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
        self.features = int(shapes[inputs][1])
        # What __call__ has checked is not checked again: guards and hooks cost more than the network.
        module = program.module(check_guards=False)
        module._forward_pre_hooks.clear()
        self._module = _without_python(module, self.features)

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of the rows, in their order.

        Raises:
            ValueError: not float32 [n, F] with n >= 1, or a value that is not finite (the message names the column).
        """
        if rows.ndim != 2 or rows.shape[1] != self.features or rows.dtype != np.float32 or not len(rows):
            raise ValueError(f"rows: need float32 [n >= 1, {self.features}], found {rows.dtype} {list(rows.shape)}")
        if not np.isfinite(rows).all():
            row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(rows)))
            raise ValueError(f"rows: row {row}, column {column} is {rows[row, column]}, must be finite")
        with torch.inference_mode():
            scores = self._module(torch.from_numpy(np.require(rows, requirements=["C", "W"])))
        found: NDArray[np.float32] = scores.numpy()
        return found


def _without_python(module: nn.Module, features: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same kernels in the same order, run by TorchScript: 30 us a call, where Python's way through them takes 110.

    The interface is deprecated and has no successor for callers in Python. A graph that it would take for one of a
    fixed number of rows stays as it is.
    """
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, torch.zeros(2, features), check_trace=False)  # type: ignore[no-untyped-call]
        frozen: Callable[[torch.Tensor], torch.Tensor] = torch.jit.freeze(traced.eval())
        for rows in (torch.ones(1, features), torch.arange(5.0 * features).reshape(5, features)):
            try:
                same = torch.equal(frozen(rows), module(rows))
            except RuntimeError:
                same = False
            if not same:
                return module
    return frozen


def load(path: Path | str) -> ScoringModule:
    """Loads module.pt2, given itself or its folder, and sets torch to one thread: rows come in parallel, not sums.

    Raises:
        ReleaseError: the file is missing or not an exported program.
    """
    file = Path(path)
    if file.is_dir():
        file = file / MODULE_FILE
    torch.set_num_threads(1)
    try:
        return ScoringModule(torch.export.load(file))
    except Exception as error:
        raise ReleaseError(f"{file}: not a module that can be run: {error}") from error


def export(network: nn.Module, features: int, file: Path) -> None:
    """Exports `network` (float32 [n, features] -> float32 [n], n free) to `file`; equal networks give equal bytes.

    torch traces with state that all threads share: while one thread is here, no other may make or run a network.

    Raises:
        ReleaseError: the file's name is not module.pt2, which is part of its bytes.
    """
    if file.name != MODULE_FILE:
        raise ReleaseError(f"{file}: must be named {MODULE_FILE}")
    rows = torch.export.Dim("rows", min=1)
    # Two rows in the example: a dimension of one would be taken as fixed.
    program = torch.export.export(network.eval(), (torch.zeros(2, features),), dynamic_shapes=({0: rows},))
    torch.export.save(without_traces(program), file)


def without_traces(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program itself, without the names of source files and lines of whoever exported it: they are no content."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return program
