"""Fixtures of the tests on a cluster. A module's tests share a namespace, which goes with them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from model_release import Release
from trine_k8s import sample_data
from trine_k8s.cluster import Cluster
from trine_k8s.cluster import cluster as connected
from trine_k8s.diagnosis import Watched
from trine_k8s.images import Images, built_and_loaded
from trine_k8s.installation import Installation, NewInstallation
from trine_k8s.namespace import Namespace, new_namespace

_watched = Watched()


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to stop cleans up as one that is interrupted."""
    config.addinivalue_line("markers", "in_order: tests that stand on one another; one that fails ends its module")

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed and not getattr(item.parent, "_broken", ""):
        item.parent._broken = item.name  # type: ignore[union-attr]
        for name, text in _watched.diagnoses():
            report.sections.append((f"namespace {name}", text))


def pytest_runtest_setup(item: pytest.Item) -> None:
    broken = getattr(item.parent, "_broken", "")
    if broken and item.get_closest_marker("in_order"):
        pytest.fail(f"{broken} has failed before", pytrace=False)


@pytest.fixture(scope="session")
def watched() -> Watched:
    """A failing test prints what is to be seen of the installations in it."""
    return _watched


@pytest.fixture(autouse=True)
def _touched_by_this_test() -> None:
    _watched.forget_touched()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with connected(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(scope="session")
def releases() -> tuple[Path, list[Release]]:
    """A folder with one release, and it."""
    return sample_data.releases(11)


@pytest.fixture(scope="session")
def images(cluster: Cluster, releases: tuple[Path, list[Release]]) -> Images:
    return built_and_loaded(cluster, releases[0])


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    with new_namespace() as made:
        yield made


@pytest.fixture(scope="module")
def new_installation(namespace: Namespace, images: Images, watched: Watched) -> Iterator[NewInstallation]:
    with ExitStack() as standing:

        def make(**options: Any) -> Installation:
            made = Installation(namespace, images, **options)
            standing.enter_context(watched.watching(made))
            return made

        yield make
