"""Releases that cannot be used are refused with the reason; what serves already goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from model_release import Release
from service_kit.run import EXIT_REFUSED
from tests.gateway_scene import NewGateway, transaction
from trine_cli.local.errors import ProcessDied


def test_a_corrupt_or_mismatching_release_is_refused_and_the_old_one_serves_on(
    new_gateway: NewGateway, state: str, release: Release, tmp_path: Path
) -> None:
    releases = tmp_path / "releases"
    good = Path(shutil.copytree(release.path, releases / release.id))
    gateway = new_gateway(redis_url=state, releases=releases)

    # Another name than its content has: nobody can tell what it is.
    stranger = Path(shutil.copytree(good, releases / "fraud-0123456789ab"))
    with pytest.raises(ProcessDied) as caught:
        new_gateway(redis_url=state, releases=releases, release=stranger.name)
    assert caught.value.returncode == EXIT_REFUSED
    assert "fraud-0123456789ab" in str(caught.value)
    # Who asks for any gets one that can be opened.
    other = new_gateway(redis_url=state, releases=releases, release="")
    assert other.score(transaction()).release == release.id
    assert "release refused" in other.log.read_text()

    module = bytearray(release.module_path.read_bytes())
    module[len(module) // 2] ^= 1
    (good / release.module_path.name).write_bytes(module)
    with pytest.raises(ProcessDied) as caught:
        new_gateway(redis_url=state, releases=releases)
    assert caught.value.returncode == EXIT_REFUSED
    assert release.module_path.name in str(caught.value)
    assert gateway.score(transaction()).release == release.id
