"""Settings of every property test, and which files share a process when pytest runs several (`-n 3 --dist loadfile`).

A busy machine is not a failure, and nothing is kept between runs. Files whose tests use the session's Spark run in one
process, and so do those that use its TorchServe: each of the two is started once. Any other file is one by itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

settings.register_profile("trine", deadline=None, database=None, print_blob=True)
settings.load_profile("trine")

# Known by the type of the fixture, which every test that asks for it names. (xdist's own groups, which marks make, are
# not seen by xdist 3.8 with pytest 9.) The longest first: nothing should be left of it when the others have finished.
_SHARED = (": SparkSession", ": TorchServe")


@cache
def _group(file: Path) -> str | None:
    text = file.read_text()
    return next((fixture for fixture in _SHARED if fixture in text), None)


class ServerOrFile(LoadFileScheduling):  # type: ignore[misc]
    """What runs in one process: all files that share a server, or a file."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return _group(self.config.rootpath / file) or file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ServerOrFile | None:
    return ServerOrFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        group = _group(item.path)
        return len(_SHARED) if group is None else _SHARED.index(group)

    items.sort(key=place)
