"""TorchServe's handler for every tabular model: raw float32 rows in, raw float32 scores out.

A request's body (or its part "data") is little-endian float32, n >= 1 rows of as many values as the model has features;
its reply is n little-endian float32 scores. Requests that TorchServe batched together are scored in one call of the
module; one that is wrong gets "refused: " and the reason (over HTTP with status 400), the others get their scores.
Runs inside TorchServe from the release's archive, beside module.pt2; of Trine it needs the package model_release only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from model_release import scoring_module
from model_release.manifest import MODULE_FILE
from numpy.typing import NDArray

_ROW = np.dtype("<f4")


if TYPE_CHECKING:  # TorchServe takes the one class it finds in this file for the handler.

    class Context(Protocol):
        """What is used here of TorchServe's context."""

        system_properties: dict[str, str]

        def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None: ...


class TabularHandler:
    """TorchServe makes one per worker process, calls `initialize` once and `handle` for every batch."""

    def initialize(self, context: Context) -> None:
        """Raises ReleaseError where the archive holds no module that can run; the worker then does not start."""
        self._score = scoring_module.load(Path(context.system_properties["model_dir"]) / MODULE_FILE)
        self._row_bytes = self._score.features * _ROW.itemsize
        # TorchServe's worker writes two lines for every request otherwise, which its frontend reads and parses.
        logging.getLogger().setLevel(logging.WARNING)

    def handle(self, requests: Sequence[dict[str, object]], context: Context) -> list[bytes | str]:
        """One reply a request: scores, or the text of an error."""
        bodies = [request.get("data", request.get("body")) for request in requests]
        replies: list[bytes | str] = [""] * len(bodies)
        found: list[tuple[int, NDArray[np.float32]]] = []
        for i, body in enumerate(bodies):
            try:
                found.append((i, self._rows(body)))
            except ValueError as error:
                replies[i] = _refuse(context, i, error)
        if not found:
            return replies
        if len(found) > 1:
            try:
                scores = self._score(np.concatenate([rows for _, rows in found]))
            except ValueError:
                pass  # One of them is to blame; apart, each gets its own answer.
            else:
                ends = np.cumsum([len(rows) for _, rows in found])
                for (i, _), part in zip(found, np.split(scores, ends[:-1]), strict=True):
                    replies[i] = part.astype(_ROW, copy=False).tobytes()
                return replies
        for i, rows in found:
            try:
                replies[i] = self._score(rows).astype(_ROW, copy=False).tobytes()
            except ValueError as error:
                replies[i] = _refuse(context, i, error)
        return replies

    def _rows(self, body: object) -> NDArray[np.float32]:
        """The rows of a request. Raises ValueError that says what is wrong with it."""
        if not isinstance(body, bytes | bytearray):
            raise ValueError(f"data: need raw bytes, found {type(body).__name__}")
        if not body or len(body) % self._row_bytes:
            raise ValueError(
                f"data: {len(body)} bytes, need a multiple of {self._row_bytes} ({self._score.features} float32 a row)"
            )
        return np.frombuffer(body, _ROW).reshape(-1, self._score.features)


def _refuse(context: Context, index: int, error: ValueError) -> str:
    context.set_response_status(400, "Bad Request", index)
    # TorchServe's gRPC side drops the status: clients know a refusal by these bytes, which no score has (3e32).
    return f"refused: {error}"
