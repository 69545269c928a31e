"""The gateway's client against a real TorchServe: scores to the bit, refusals, deadlines, restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import psutil
import pytest
from inference_gateway.model_server import ModelRejected, ModelUnavailable, TorchServeClient
from model_release import Release
from trine_cli.local.fixtures import PrivateTorchServe
from trine_cli.local.torchserve import TorchServe

pytestmark = pytest.mark.timeout(300)


def register(server: TorchServe, release: Release, **query: object) -> None:
    parameters = {"url": release.archive_path.as_uri(), "model_name": release.id, "initial_workers": 1}
    parameters |= {"synchronous": "true", **query}
    reply = httpx.post(f"{server.management_url}/models", params=parameters, timeout=120)  # type: ignore[arg-type]
    assert reply.status_code == 200, reply.text


@pytest.fixture
async def client(model_server: TorchServe) -> AsyncIterator[TorchServeClient]:
    client = TorchServeClient(model_server.inference)
    yield client
    await client.close()


async def test_golden_rows_to_the_bit_whatever_the_batch(client: TorchServeClient, release: Release) -> None:
    await client.check(release)
    rng = np.random.default_rng(7)
    for size in (1, 2, 3, 8, 17, 64, 255, 256, 3000):
        rows = rng.integers(0, len(release.golden_inputs), size)
        found = await client.score(release.id, release.golden_inputs[rows], 10)
        assert found.tobytes() == release.golden_scores[rows].tobytes()


async def test_wrong_golden_scores_are_told_apart_by_one_bit(client: TorchServeClient, release: Release) -> None:
    scores = release.golden_scores.copy()
    scores[200] = np.nextafter(scores[200], np.float32(0.5))
    wrong = Release(release.path, release.manifest, release.plan, release.golden_inputs, scores)
    with pytest.raises(ModelRejected, match="golden row 200 in a batch of 256"):
        await client.check(wrong)


async def test_refused_rows_say_why_and_cost_nobody_else(client: TorchServeClient, release: Release) -> None:
    width = len(release.features)
    narrow = np.zeros((1, width - 1), np.float32)
    infinite = np.full((2, width), np.inf, np.float32)
    calls = [client.score(release.id, rows, 10) for rows in (narrow, release.golden_inputs[:5], infinite)]
    first, good, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, ModelRejected)
    assert "56 bytes, need a multiple of 60 (15 float32 a row)" in str(first)
    assert isinstance(last, ModelRejected)
    assert "row 0, column 0 is inf, must be finite" in str(last)
    assert isinstance(good, np.ndarray)
    assert good.tobytes() == release.golden_scores[:5].tobytes()


async def test_release_that_is_not_loaded_is_unavailable(client: TorchServeClient, release: Release) -> None:
    with pytest.raises(ModelUnavailable, match="Model not found: fraud-000000000000") as caught:
        await client.score("fraud-000000000000", release.golden_inputs[:1], 10)
    assert caught.value.reason == "model_down"


async def test_requests_batched_by_the_server_each_get_their_own(
    private_torchserve: PrivateTorchServe, release: Release
) -> None:
    """TorchServe's own batching joins requests into one call of the handler; a wrong one fails alone."""
    server = private_torchserve()
    register(server, release, batch_size=8, max_batch_delay=500)
    client = TorchServeClient(server.inference)
    sizes = [1, 4, 2, 9, 3, 1, 5]
    parts = [release.golden_inputs[i : i + size] for i, size in enumerate(sizes)]
    wrong = np.full((1, len(release.features)), np.nan, np.float32)
    calls = [client.score(release.id, rows, 10) for rows in (*parts, wrong)]
    *good, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, ModelRejected)
    for i, (size, found) in enumerate(zip(sizes, good, strict=True)):
        assert isinstance(found, np.ndarray)
        assert found.tobytes() == release.golden_scores[i : i + size].tobytes()

    # The same server, stopped and killed: nobody waits longer than asked, and it is found again at once.
    server.pause()
    began = time.perf_counter()
    with pytest.raises(ModelUnavailable) as caught:
        await client.score(release.id, release.golden_inputs[:1], 0.05)
    assert caught.value.reason == "deadline"
    assert time.perf_counter() - began < 0.5
    server.resume()
    server.kill()
    with pytest.raises(ModelUnavailable) as caught:
        await client.score(release.id, release.golden_inputs[:1], 1)
    assert caught.value.reason == "model_down"
    server.start()
    deadline = time.monotonic() + 5
    while True:
        with pytest.raises(ModelUnavailable) as caught:
            await client.score(release.id, release.golden_inputs[:1], 1)
        if "Model not found" in str(caught.value):
            break
        assert time.monotonic() < deadline, "not connected again within 5 s"
        await asyncio.sleep(0.05)
    await client.close()


async def test_no_answer_is_lost_when_connections_end(private_torchserve: PrivateTorchServe, release: Release) -> None:
    server = private_torchserve(settings={"grpc_inference_max_connection_age_ms": 300})
    register(server, release)
    client = TorchServeClient(server.inference)
    ours = psutil.Process()
    connections: set[int] = set()
    deadline = time.monotonic() + 60
    while len(connections) < 8:
        assert time.monotonic() < deadline, f"{len(connections)} connections in a minute"
        # Several at once, so that a connection ends under some.
        calls = [client.score(release.id, release.golden_inputs[i : i + 2], 10) for i in range(4)]
        for i, found in enumerate(await asyncio.gather(*calls)):
            assert found.tobytes() == release.golden_scores[i : i + 2].tobytes()
        connections |= {c.laddr.port for c in ours.net_connections("tcp") if c.raddr[1:] == (server.grpc_port,)}
    await client.close()


async def test_what_is_late_by_the_servers_clock_is_late_and_not_down(
    client: TorchServeClient, release: Release
) -> None:
    """TorchServe resets a call that is late, sometimes before the client has seen that it is."""
    rows, late = release.golden_inputs[:1], 0
    for _ in range(150):
        calls = [client.score(release.id, rows, 0.02) for _ in range(60)]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(found, BaseException):
                assert isinstance(found, ModelUnavailable), found
                # The calls that it has given up still stand in its queue, which may be full.
                assert found.reason == "deadline" or "has no worker" in str(found)
                late += 1
    assert late


def test_a_reply_is_never_taken_for_what_it_is_not() -> None:
    from inference_gateway.model_server import _field, _scores

    assert _scores("r", _field(1, b"\0\0\0\x3f" * 100), 100).tolist() == [0.5] * 100
    for reply in (b"", b"\x0a", _field(1, b"\0\0\0"), _field(1, b"refused: 123")[:-1], _field(2, b"\0\0\0\x3f")):
        with pytest.raises(ModelRejected):
            _scores("r", reply, 1)
    with pytest.raises(ModelRejected, match="refused: no"):
        _scores("r", _field(1, b"refused: no!"), 3)  # as long as three scores
