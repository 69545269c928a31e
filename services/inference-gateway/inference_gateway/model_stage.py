"""The model stage: rows of many requests in one call to the model server, within what the deadlines leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from model_release.release import Release
from service_kit.health import Health

from inference_gateway.answering import Answering
from inference_gateway.batcher import Batcher
from inference_gateway.circuit import Circuit
from inference_gateway.decision import Reason
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.model_server import ModelServer, ModelServerError, ModelUnavailable
from inference_gateway.work import Work


class ModelStage:
    """Before a model server is used, at start or after a failure, its scores of the golden rows are checked."""

    def __init__(
        self,
        server: ModelServer,
        release: Release,
        answering: Answering,
        health: Health,
        metrics: GatewayMetrics,
        *,
        lanes: int,
        max_rows: int,
        min_s: float,
        part: str = "model",
        unchecked: str | None = "not checked yet",
    ) -> None:
        """`part`: of the health. `unchecked`: why the server cannot be used before its check; None: it was checked."""
        self._server, self._release, self._answering, self._metrics = server, release, answering, metrics
        self._min_s = min_s
        self._taken: Callable[[], None] = lambda: None
        self._batcher: Batcher[Work] = Batcher(self._call, lanes=lanes, max_items=max_rows)
        self._circuit = Circuit(part, self._check, health, every_s=0.2, probe_timeout_s=10.0, start_open=unchecked)

    @property
    def waiting(self) -> int:
        """How many requests wait for a call to begin."""
        return len(self._batcher)

    def on_taken(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a call has begun with those that waited."""
        self._taken = listener

    @property
    def usable(self) -> bool:
        return not self._circuit.open

    def ask(self, works: Sequence[Work]) -> None:
        """Score requests whose vectors are whole."""
        if self._circuit.open:
            self._answering.without_model(works, Reason.MODEL_DOWN)
        else:
            self._batcher.add(works)

    async def idle(self) -> None:
        await self._batcher.idle()

    def retire(self) -> None:
        """Another takes its place: it finishes what it has, and says nothing of the health any more."""
        self._circuit.silence()

    @property
    def busy(self) -> bool:
        return self._batcher.busy

    async def close(self) -> None:
        await self._circuit.close()

    async def _check(self) -> None:
        await self._server.check(self._release)

    async def _call(self, gathered: list[Work]) -> None:
        self._taken()
        began = time.perf_counter()
        works: list[Work] = []
        late: list[Work] = []
        for w in gathered:
            if not w.answered:
                (works if w.answer_by - began >= self._min_s else late).append(w)
        if late:
            self._answering.without_model(late, Reason.DEADLINE)
        if not works:
            return
        if self._circuit.open:
            self._answering.without_model(works, Reason.MODEL_DOWN)
            return
        rows = np.stack([w.vector for w in works if w.vector is not None])
        limit_s = max(w.answer_by for w in works) - began
        self._metrics.model_rows.observe(len(works))
        try:
            scores = await self._server.score(self._release.id, rows, limit_s)
            took = time.perf_counter() - began
            self._metrics.model_stage.observe(took)
            took_us = int(took * 1e6)
            for w in works:
                w.model_us = took_us
            self._answering.by_model(works, scores)
            self._circuit.worked()
        except ModelUnavailable as error:
            if error.reason == Reason.DEADLINE:
                self._circuit.slow(str(error))
                self._answering.without_model(works, Reason.DEADLINE)
            else:
                self._circuit.failed(str(error))
                self._answering.without_model(works, Reason.MODEL_DOWN)
        except (ModelServerError, ValueError) as error:
            self._circuit.failed(str(error))
            self._answering.without_model(works, Reason.MODEL_DOWN)
