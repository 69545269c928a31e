"""The model server as the gateway sees it: rows in, scores out; and TorchServe behind that, over gRPC.

TorchServe's message is a model's name and a map with one entry, "data" → raw float32 rows; its reply one field of raw
float32 scores. Both are coded by hand here: a dozen bytes around the payload, without copies through protobuf.

    ModelServerError
    ├── ModelUnavailable      no answer: down, too slow, saturated, or the release is not loaded (yet)
    └── ModelRejected         an answer that cannot be used: rows refused, or scores that are not those of the release
"""

from __future__ import annotations

from typing import Protocol

import grpc
import numpy as np
from model_release import Release
from numpy.typing import NDArray

_SCORE = np.dtype("<f4")
_PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
#: How the handler begins a refusal (models/torchserve/handler.py); as a float32 it is 3e32, which no score is.
_REFUSED = b"refused: "
_CHECK_TIMEOUT_S = 5.0
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Where the address is a name with several servers behind it, calls go to all of them.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A server that ends a connection (it is old, its pod goes) and a call may cross: once more, elsewhere if there is.
    # TorchServe also cancels what is late by its clock, a little before it is by ours: the second try finds no time
    # left and says so.
    (
        "grpc.service_config",
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 2, "initialBackoff": "0.005s", '
        '"maxBackoff": "0.005s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}}]}',
    ),
    # A restarted server is found again within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name this is how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A peer that vanished without a word (a node lost) is noticed while calls are made.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # One process, one connection of its own, also where several clients are made.
    ("grpc.use_local_subchannel_pool", 1),
)


class ModelServerError(Exception):
    """The model server gave no scores that can be used."""


class ModelUnavailable(ModelServerError):
    """No answer. `reason`: "deadline" (too slow) or "model_down"."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ModelRejected(ModelServerError):
    """The server answered that it cannot score these rows, or with something that is not their scores."""


class ModelServer(Protocol):
    """What the gateway needs of a model server."""

    async def score(self, release: str, rows: NDArray[np.float32], timeout_s: float) -> NDArray[np.float32]:
        """Calibrated scores float32 [n] of `rows` float32 [n, F], n >= 1, in their order.

        Raises:
            ModelUnavailable: no answer within `timeout_s`.
            ModelRejected: the rows are refused, or the reply is not n scores.
        """

    async def check(self, release: Release) -> None:
        """Sends the golden rows through the server; raises as `score`, ModelRejected where a bit differs."""

    async def close(self) -> None:
        """Ends the connection; calls in flight fail."""


class TorchServeClient:
    """`ModelServer` over TorchServe's gRPC inference API. Make it inside the event loop.

    `address`: HOST:PORT, or dns:///HOST:PORT for all servers that the name stands for.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._predictions = self._channel.unary_unary(_PREDICTIONS, None, None)
        self._heads: dict[str, bytes] = {}

    async def score(self, release: str, rows: NDArray[np.float32], timeout_s: float) -> NDArray[np.float32]:
        """See `ModelServer.score`."""
        head = self._heads.get(release)
        if head is None:
            head = self._heads[release] = _field(1, release.encode())
        payload = np.ascontiguousarray(rows, _SCORE).tobytes()
        try:
            reply: bytes = await self._predictions(head + _field(3, _DATA + _field(2, payload)), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _failure(release, error) from None
        return _scores(release, reply, len(rows))

    async def check(self, release: Release) -> None:
        """See `ModelServer.check`. Batches of several sizes, since the scores must not depend on them."""
        inputs, golden = release.golden_inputs, release.golden_scores
        for size in (len(inputs), 1, 7):
            # Few calls for the small sizes: the first rows are as good as any.
            for start in range(0, min(len(inputs), 4 * size), size):
                batch = slice(start, start + size)
                found = await self.score(release.id, inputs[batch], _CHECK_TIMEOUT_S)
                different = np.flatnonzero(found.view(np.uint32) != golden[batch].view(np.uint32))
                if len(different):
                    row = int(different[0])
                    raise ModelRejected(
                        f"{release.id}: golden row {start + row} in a batch of {size} scores {found[row]!r}, "
                        f"should be {golden[start + row]!r}"
                    )

    async def close(self) -> None:
        """See `ModelServer.close`."""
        await self._channel.close(None)


def _failure(release: str, error: grpc.aio.AioRpcError) -> ModelServerError:
    code, details = error.code(), (error.details() or "").split("\n", 1)[0]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ModelUnavailable(f"{release}: no answer in time", "deadline")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
        # RESOURCE_EXHAUSTED: larger than a message may be.
        return ModelRejected(f"{release}: {details}")
    # TorchServe says INTERNAL for a model that is not registered, a full queue and a worker that died alike.
    return ModelUnavailable(f"{release}: {code.name}: {details}", "model_down")


def _scores(release: str, reply: bytes, count: int) -> NDArray[np.float32]:
    """Field 1 of the reply as `count` scores."""
    tag, (size, start) = reply[:1], _varint(reply, 1)
    body = reply[start:]
    if tag != b"\x0a" or size != len(body):
        raise ModelRejected(f"{release}: the reply is not a prediction: {reply[:40]!r}")
    if body.startswith(_REFUSED):
        raise ModelRejected(f"{release}: {body.decode(errors='replace')}")
    if size != count * _SCORE.itemsize:
        raise ModelRejected(f"{release}: {size} bytes in reply, need {count} float32: {body[:80]!r}")
    return np.frombuffer(body, _SCORE)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, prefix = len(payload), bytearray([number << 3 | 2])
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + payload


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and where it ends; (-1, at) where there is none."""
    value = 0
    for shift, byte in enumerate(raw[at : at + 5]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    return -1, at


_DATA = _field(1, b"data")
