"""The release's own module as an ONNX file, for the rival that runs it in process; checked against the golden rows."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
import torch


def export_onnx(release: Path, file: Path) -> float:
    """Write `file`; gives the share of golden scores that ONNX Runtime repeats to the bit."""
    program = torch.export.load(release / "module.pt2")
    inputs = np.fromfile(release / "golden_inputs.f32", dtype="<f4")
    scores = np.fromfile(release / "golden_scores.f32", dtype="<f4")
    rows = inputs.reshape(len(scores), -1)
    # Exported again for a single row: all the rival ever sends.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program.module(), (torch.from_numpy(rows[:1].copy()),), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = np.concatenate([session.run(None, {name: rows[i : i + 1]})[0].reshape(-1) for i in range(len(rows))])
    return float((found.view(np.int32) == scores.view(np.int32)).mean())
