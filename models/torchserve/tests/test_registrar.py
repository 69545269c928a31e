"""Releases in a folder become verified models of a real TorchServe; bad ones are refused and the others serve on."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from model_release import Release, list_releases
from model_release.manifest import content_hash, release_id
from model_release.testing import write_toy_release
from service_kit.health import Health
from service_kit.metrics import Metrics
from trine_cli.local.fixtures import PrivateTorchServe
from trine_cli.local.torchserve import TorchServe

from models.fraud.features import PLAN
from models.torchserve.management import ServerUnreachable, TorchServeAdmin
from models.torchserve.registrar import Registrar

pytestmark = pytest.mark.timeout(300)


class Served:
    """A registrar in this process over the session's TorchServe and a folder of the test's own."""

    def __init__(self, server: TorchServe, releases: Path) -> None:
        self.releases, self.server = releases, server
        self.admin = TorchServeAdmin(server.management_url, server.inference_url)
        self.health = Health()
        self.registrar = Registrar(releases, self.admin, self.health, Metrics("registrar"))

    def reasons(self) -> dict[str, str]:
        return self.health.report().degraded


@pytest.fixture
async def served(torchserve: TorchServe, tmp_path: Path) -> AsyncIterator[Served]:
    releases = tmp_path / "releases"
    releases.mkdir()
    it = Served(torchserve, releases)
    yield it
    for name in await it.admin.models():
        await it.admin.unregister(name)
    await it.admin.close()


def with_wrong_golden_scores(release: Release) -> Path:
    """A copy beside `release`, consistent in every hash, whose last golden score is another float."""
    scores = release.golden_scores.copy()
    scores[-1] = np.nextafter(scores[-1], np.float32(0.5))
    body = json.loads((release.path / "manifest.json").read_bytes())
    files = {name: digest for name, digest in body["files"].items() if not name.endswith(".mar")}
    files["golden_scores.f32"] = hashlib.sha256(scores.tobytes()).hexdigest()
    digest = content_hash({**body, "files": files})
    name = release_id(body["model"], digest)
    folder = release.path.parent / f".{name}"
    shutil.copytree(release.path, folder)
    (folder / "golden_scores.f32").write_bytes(scores.tobytes())
    (folder / f"{release.id}.mar").rename(folder / f"{name}.mar")
    files[f"{name}.mar"] = hashlib.sha256((folder / f"{name}.mar").read_bytes()).hexdigest()
    body.update(release=name, content_hash=digest, files=files)
    (folder / "manifest.json").write_text(json.dumps(body))
    return folder.rename(release.path.parent / name)


async def test_wrong_golden_scores_are_refused_and_the_old_release_serves_on(served: Served) -> None:
    good = write_toy_release(served.releases, PLAN, seed=1)
    await served.registrar.look()
    assert served.registrar.loaded == {good.id}

    wrong = with_wrong_golden_scores(good)
    await served.registrar.look()
    assert served.registrar.loaded == {good.id}
    assert "golden row 255 in a batch of 256" in served.reasons()[wrong.name]
    assert await served.admin.models() == {good.id}
    await served.admin.check(good)
    await garbage_is_answered_with_400_and_what_would_be_right(served, good)
    await served.admin.check(good)

    shutil.rmtree(wrong)
    await served.registrar.look()
    assert wrong.name not in served.reasons()


async def test_corrupt_release_is_refused_until_its_files_change(served: Served) -> None:
    release = write_toy_release(served.releases, PLAN, seed=2)
    module = release.module_path.read_bytes()
    release.module_path.write_bytes(module[:-1] + bytes([module[-1] ^ 1]))
    await served.registrar.look()
    assert served.registrar.loaded == set()
    assert "module.pt2: sha256 is" in served.reasons()[release.id]
    assert await served.admin.models() == set()

    release.module_path.write_bytes(module)
    await served.registrar.look()
    assert served.registrar.loaded == {release.id}
    assert served.reasons() == {}


async def test_archive_that_cannot_start_is_refused(served: Served, tmp_path: Path) -> None:
    handler = tmp_path / "handler.py"
    handler.write_text("raise RuntimeError('no handler today')\n")
    release = write_toy_release(served.releases, PLAN, seed=3, handler=handler)
    await served.registrar.look()
    assert "Failed to start workers" in served.reasons()[release.id]
    assert await served.admin.models() == set()


async def test_release_that_left_the_folder_is_unregistered_but_not_when_all_are_gone(served: Served) -> None:
    first, second = (write_toy_release(served.releases, PLAN, seed=seed) for seed in (4, 5))
    await served.registrar.look()
    assert await served.admin.models() == {first.id, second.id}
    shutil.rmtree(first.path)
    await served.registrar.look()
    assert await served.admin.models() == {second.id}
    shutil.rmtree(served.releases)
    await served.registrar.look()
    assert await served.admin.models() == {second.id}


async def garbage_is_answered_with_400_and_what_would_be_right(served: Served, release: Release) -> None:
    nan = np.full((1, len(release.features)), np.nan, np.float32).tobytes()
    async with httpx.AsyncClient(base_url=served.server.inference_url) as client:
        for body, reason in ((b"garbage", "7 bytes, need a multiple of 60"), (b"", "0 bytes"), (nan, "must be finite")):
            headers = {"content-type": "application/octet-stream"}
            reply = await client.post(f"/predictions/{release.id}", content=body, headers=headers)
            assert reply.status_code == 400
            assert reason in reply.text


class RegistrarProcess:
    def __init__(self, server: TorchServe, releases: Path, log: Path) -> None:
        self._log = log
        where = ["--management", server.management_url, "--inference", server.inference_url]
        arguments = ["--releases", str(releases), *where, "--interval-s", "0.1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "models.torchserve.registrar", *arguments], stderr=log.open("wb")
        )

    def count(self, event: str) -> int:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]
        return sum(line["event"] == event for line in lines)


def eventually(check: Callable[[], bool], within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


async def test_killed_server_gets_its_releases_again(private_torchserve: PrivateTorchServe, tmp_path: Path) -> None:
    release = write_toy_release(tmp_path / "releases", PLAN)
    server = private_torchserve()
    registrar = RegistrarProcess(server, tmp_path / "releases", tmp_path / "registrar.log")
    admin = TorchServeAdmin(server.management_url, server.inference_url)
    try:
        eventually(lambda: registrar.count("release loaded") == 1)
        server.kill()
        with pytest.raises(ServerUnreachable):
            await admin.check(release)
        # What a killed server left in its store must not be in the way.
        assert list_releases(tmp_path / "releases")
        server.start()
        eventually(lambda: registrar.count("release loaded") == 2)
        await admin.check(release)
        registrar.process.send_signal(signal.SIGTERM)
        assert registrar.process.wait(20) == 0
    finally:
        registrar.process.kill()
        registrar.process.wait()
        await admin.close()


def test_management_that_others_could_reach_is_refused(tmp_path: Path) -> None:
    arguments = ["--releases", str(tmp_path), "--management", "http://10.0.0.1:8081", "--inference", "http://x:1"]
    run = subprocess.run(
        [sys.executable, "-m", "models.torchserve.registrar", *arguments], capture_output=True, timeout=60
    )
    assert run.returncode == 78
    assert b"is not a URL on loopback" in run.stderr
