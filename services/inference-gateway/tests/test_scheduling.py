"""Micro-batches, deadlines and circuits: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_gateway.batcher import Batcher
from inference_gateway.circuit import Circuit
from inference_gateway.deadline import DeadlinePolicy, DeadlineWheel
from service_kit.health import Health


async def eventually(check: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not check() and time.monotonic() < end:  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.001)
    assert check()


async def test_a_lone_request_waits_for_nobody_and_a_crowd_gathers_behind_it() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def work(batch: list[int]) -> None:
        batches.append(batch)
        await gate.wait()

    batcher = Batcher(work, lanes=2, max_items=4, together=True, patience_s=60)
    for i in (1, 2):
        batcher.add([i])  # one turn of the loop: together
    await eventually(lambda: batches == [[1, 2]])
    for i in (3, 4, 5):
        batcher.add([i])
        await asyncio.sleep(0)
    assert len(batches) == 1, "a batch that could still grow waits for the one that is worked on"
    batcher.add([6])
    await eventually(lambda: batches[1:] == [[3, 4, 5, 6]])
    for i in range(7, 13):
        batcher.add([i])
        await asyncio.sleep(0)
    assert len(batches) == 2, "both lanes are busy"
    assert len(batcher) == 6
    gate.set()
    await batcher.idle()
    assert batches[2:] == [[7, 8, 9, 10], [11, 12]]


async def test_nobody_waits_for_long_behind_one_that_is_stuck() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def work(batch: list[int]) -> None:
        batches.append(batch)
        await gate.wait()

    batcher = Batcher(work, lanes=2, max_items=8, patience_s=0.01)
    batcher.add([0])
    batcher.add([1])
    batcher.add([2])
    await eventually(lambda: batches == [[0], [1, 2]])
    batcher.add([3])
    gate.set()
    await batcher.idle()
    assert batches == [[0], [1, 2], [3]]


async def test_a_stage_does_not_run_ahead_of_the_next() -> None:
    batches: list[list[int]] = []
    held = True

    async def work(batch: list[int]) -> None:
        batches.append(batch)

    batcher = Batcher(work, lanes=1, max_items=8, held=lambda: held)
    for i in range(3):
        batcher.add([i])
        await asyncio.sleep(0.001)
    assert batches == []
    held = False
    batcher.look()
    await eventually(lambda: batches == [[0, 1, 2]])


async def test_a_failing_batch_frees_its_lane() -> None:
    done: list[int] = []

    async def work(batch: list[int]) -> None:
        if 1 in batch:
            raise RuntimeError("boom")
        done.extend(batch)

    batcher = Batcher(work, lanes=1, max_items=1)
    batcher.add([1, 2, 3])
    await batcher.idle()
    assert done == [2, 3]


@given(st.floats(0.001, 60), st.floats(0, 10))
def test_an_answer_is_decided_before_the_client_gives_up(given_s: float, lag_s: float) -> None:
    policy = DeadlinePolicy()
    within = policy.answer_within(given_s, lag_s)
    assert within < given_s
    assert within <= policy.answer_within(given_s)
    if given_s >= 0.01:
        assert within > 0
        assert policy.answer_within(given_s) >= min(given_s, policy.longest_s) * 0.75 - policy.reserve_min_s


def test_no_deadline_means_the_default() -> None:
    policy = DeadlinePolicy(default_s=0.1)
    assert policy.answer_within(None) == policy.answer_within(0.1) == pytest.approx(0.08)


async def test_the_wheel_calls_in_time_and_in_one_go() -> None:
    calls: list[tuple[float, list[str]]] = []
    wheel: DeadlineWheel[str] = DeadlineWheel(lambda due: calls.append((time.perf_counter(), due)), slot_s=0.01)
    base = (int(time.perf_counter() / 0.01) + 5) * 0.01
    for name, after in (("a", 0.001), ("b", 0.009), ("c", 0.031)):
        wheel.add(name, base + after)
    await eventually(lambda: len(calls) == 2)
    assert [due for _, due in calls] == [["a", "b"], ["c"]]
    assert calls[0][0] == pytest.approx(base, abs=0.1)
    wheel.add("late", time.perf_counter() - 1)
    await eventually(lambda: len(calls) == 3)
    assert wheel.lag_s >= 1, "and it knows how late it is"


async def test_a_circuit_opens_probes_and_closes() -> None:
    broken = True
    probes = 0
    returned: list[str] = []

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if broken:
            raise ConnectionError("nobody there")

    health = Health()
    circuit = Circuit("part", probe, health, every_s=0.001, patience=3, on_close=lambda: returned.append("back"))
    circuit.slow("slow")
    circuit.slow("slow")
    circuit.worked()
    circuit.slow("slow")
    circuit.slow("slow")
    assert not circuit.open, "not three in a row"
    circuit.slow("too slow")
    assert circuit.open
    await eventually(lambda: probes > 3)
    assert circuit.open
    assert health.report().degraded == {"part": "nobody there"}
    broken = False
    await eventually(lambda: not circuit.open)
    assert returned == ["back"]
    assert not health.report().degraded
    circuit.failed("gone")
    assert circuit.open
    await circuit.close()
