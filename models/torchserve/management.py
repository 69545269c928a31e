"""TorchServe's HTTP interfaces as the registrar needs them: list, register, unregister, and score golden rows."""

from __future__ import annotations

import logging
from http import HTTPStatus

import httpx
import numpy as np
from model_release import Release
from numpy.typing import NDArray

_ANSWER_TIMEOUT_S = 5.0
#: Registering waits for a worker process that imports torch.
_REGISTER_TIMEOUT_S = 120.0
#: A worker that does not answer for so long is ended and started again by TorchServe.
_WORKER_TIMEOUT_S = 10
_ALREADY_THERE = "Model file already exists"

# The registrar asks every second; each would be a line of its log.
logging.getLogger("httpx").setLevel(logging.WARNING)


class ServerUnreachable(Exception):
    """TorchServe does not answer, or not sensibly."""


class NotRegistered(Exception):
    """TorchServe could not load the release; the text is its reason."""


class GoldenMismatch(Exception):
    """The server's scores are not the release's own; the text names the first row that differs."""


class TorchServeAdmin:
    """TorchServe at `management` (URL, loopback) and `inference` (URL); `workers` processes for every release."""

    def __init__(self, management: str, inference: str, workers: int = 1) -> None:
        self._management = httpx.AsyncClient(base_url=management, timeout=_ANSWER_TIMEOUT_S, trust_env=False)
        self._inference = httpx.AsyncClient(base_url=inference, timeout=_ANSWER_TIMEOUT_S, trust_env=False)
        self._workers = workers

    async def models(self) -> set[str]:
        """Names of the registered models. Raises ServerUnreachable."""
        names: set[str] = set()
        page = "0"
        while page:
            reply = await self._ask("GET", "/models", {"limit": "1000", "next_page_token": page})
            body = reply.json() if reply.status_code == HTTPStatus.OK else {}
            if "models" not in body:
                raise ServerUnreachable(f"GET /models: status {reply.status_code}: {reply.text[:200]}")
            names.update(model["modelName"] for model in body["models"])
            page = body.get("nextPageToken", "")
        return names

    async def register(self, release: Release) -> None:
        """Registers the release's archive and waits for its workers. Raises NotRegistered, ServerUnreachable."""
        reply = await self._register(release, release.archive_path.resolve().as_uri())
        if _ALREADY_THERE in reply.text:
            # Left in the server's store by a process that was killed; the golden rows will tell whether it is whole.
            reply = await self._register(release, release.archive_path.name)
        if reply.status_code not in (HTTPStatus.OK, HTTPStatus.CONFLICT):
            raise NotRegistered(_message(reply))

    async def unregister(self, name: str) -> None:
        """Takes a model off the server; one that is not there is fine. Raises ServerUnreachable."""
        reply = await self._ask("DELETE", f"/models/{name}", {})
        if reply.status_code not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            raise ServerUnreachable(f"DELETE /models/{name}: {_message(reply)}")

    async def check(self, release: Release) -> None:
        """The golden rows through the inference interface, in one batch and singly, to the bit.

        Raises:
            GoldenMismatch: a score differs, or the rows are refused.
            ServerUnreachable: no answer.
        """
        inputs, golden = release.golden_inputs, release.golden_scores
        for batch in (slice(0, len(inputs)), slice(0, 1), slice(1, 2), slice(2, 9)):
            found = await self._scores(release.id, inputs[batch])
            expected = golden[batch]
            if len(found) != len(expected):
                raise GoldenMismatch(f"{len(found)} scores for {len(expected)} golden rows")
            different = np.flatnonzero(found.view(np.uint32) != expected.view(np.uint32))
            if len(different):
                row = int(different[0])
                raise GoldenMismatch(
                    f"golden row {batch.start + row} in a batch of {len(found)} scores {found[row]!r}, "
                    f"golden_scores.f32 says {expected[row]!r} ({len(different)} rows differ)"
                )

    async def close(self) -> None:
        await self._management.aclose()
        await self._inference.aclose()

    async def _register(self, release: Release, url: str) -> httpx.Response:
        query = {
            "url": url,
            "model_name": release.id,
            "initial_workers": str(self._workers),
            "synchronous": "true",
            # The gateway makes the batches; here they would only wait for each other.
            "batch_size": "1",
            "max_batch_delay": "0",
            "response_timeout": str(_WORKER_TIMEOUT_S),
        }
        return await self._ask("POST", "/models", query, _REGISTER_TIMEOUT_S)

    async def _scores(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        headers = {"content-type": "application/octet-stream"}
        try:
            reply = await self._inference.post(f"/predictions/{name}", content=rows.tobytes(), headers=headers)
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"inference: {error!r}") from error
        if reply.status_code == HTTPStatus.BAD_REQUEST:
            raise GoldenMismatch(reply.text[:200])
        if reply.status_code != HTTPStatus.OK:
            raise ServerUnreachable(f"inference: {_message(reply)}")
        if len(reply.content) % 4:
            raise GoldenMismatch(f"the reply is not float32: {reply.content[:80]!r}")
        return np.frombuffer(reply.content, "<f4")

    async def _ask(
        self, method: str, path: str, query: dict[str, str], timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> httpx.Response:
        try:
            return await self._management.request(method, path, params=query, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise ServerUnreachable(f"management: {method} {path}: {error!r}") from error


def _message(reply: httpx.Response) -> str:
    try:
        return f"{reply.json()['message']} (status {reply.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}: {reply.text[:200]}"
