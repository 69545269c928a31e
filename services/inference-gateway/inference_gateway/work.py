"""What travels through the stages: a request on its way (`Work`), who waits for it (`Job`), and its `Answer`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from feature_store.online import ViewRead
from numpy.typing import NDArray

from inference_gateway.decision import Request
from inference_gateway.errors import GatewayError
from inference_gateway.recorder import Group

if TYPE_CHECKING:
    from inference_gateway.serving import Serving


class Read(NamedTuple):
    """What was read for a request, before a release took its part: by the plan with this fingerprint."""

    row: NDArray[np.float32]
    usable: NDArray[np.bool_]
    inputs: Sequence[ViewRead]
    plan: str


class Answer:
    """A serialised response. `vector`: the features behind it, for who wants them explained; None where there are none.
    `repeated`: this is the stored answer of an earlier, equal request."""

    __slots__ = ("repeated", "response", "vector")

    def __init__(self, response: bytes, vector: NDArray[np.float32] | None, repeated: bool = False) -> None:
        self.response, self.vector, self.repeated = response, vector, repeated

    def again(self) -> Answer:
        return Answer(self.response, self.vector, True)


Outcome = Answer | GatewayError


class Job:
    """One call's requests; `done` is set when each has its outcome, in the call's order."""

    __slots__ = ("_left", "done", "outcomes")

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self._left = count
        self.done: asyncio.Future[Job] = asyncio.get_running_loop().create_future()

    def put(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self._left -= 1
        if self._left == 0 and not self.done.done():
            self.done.set_result(self)


class Work:
    """A request between arrival and answer. Times: time.perf_counter() seconds; `_us`: microseconds by stage.

    `serving`: the release that decides. `group` is what recorded its event; `unrecorded`: nothing could. `usable`:
    which features of `vector` count; None where no state was read. `followers`: equal requests that came meanwhile.
    `read`: what a shadow needs.
    """

    __slots__ = (
        "answer_by", "answered", "arrived", "features_us", "followers", "group", "index", "inputs", "job", "lag_ms",
        "model_us", "queue_us", "read", "record_us", "request", "serving", "unrecorded", "usable", "vector",
    )  # fmt: skip

    def __init__(
        self, request: Request, serving: Serving, job: Job, index: int, arrived: float, answer_by: float
    ) -> None:
        self.request, self.serving, self.job, self.index = request, serving, job, index
        self.arrived, self.answer_by = arrived, answer_by
        self.answered = False
        self.followers: list[tuple[Job, int]] | None = None
        self.group: Group | None = None
        self.read: Read | None = None
        self.unrecorded = False
        self.vector: NDArray[np.float32] | None = None
        self.usable: NDArray[np.bool_] | None = None
        self.inputs: Sequence[ViewRead] = ()
        self.lag_ms = 0
        self.queue_us = self.features_us = self.model_us = self.record_us = 0


def by_serving(works: Sequence[Work]) -> Iterator[tuple[Serving, Sequence[Work]]]:
    """`works` by the release that decides them; nearly always that is one."""
    if not works:
        return
    first = works[0].serving
    if all(w.serving is first for w in works):
        yield first, works
        return
    groups: dict[str, list[Work]] = {}
    for w in works:
        groups.setdefault(w.serving.id, []).append(w)
    for group in groups.values():
        yield group[0].serving, group
