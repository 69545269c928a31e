"""The releases in a folder as this process could serve them: opened and verified, or refused with the reason.

A folder may gain releases at any time. One that is refused is tried again when its files change; one that was opened
is in memory, whatever becomes of its files. Blocking: called in a thread.
"""

from __future__ import annotations

from pathlib import Path

from model_release.errors import ReleaseError
from model_release.release import Release, files_of, list_request_releases, open_release
from service_kit.logs import get_logger

log = get_logger(__name__)


class StagedReleases:
    """Of one model. `opened` by id, and `refused` with the reason: what the last `look` found in the folder."""

    def __init__(self, folder: Path, model: str, opened: Release) -> None:
        self._folder, self._model = folder, model
        self.opened: dict[str, Release] = {opened.id: opened}
        self.refused: dict[str, str] = {}
        self._seen: dict[str, tuple[tuple[str, int, int], ...]] = {}

    def look(self) -> None:
        opened, refused = {}, {}
        for path in list_request_releases(self._folder):
            name = path.name
            if name.rpartition("-")[0] != self._model:
                continue
            if name in self.opened:
                opened[name] = self.opened[name]
                continue
            files = files_of(path)
            if name in self.refused and self._seen.get(name) == files:
                refused[name] = self.refused[name]
                continue
            self._seen[name] = files
            try:
                opened[name] = open_release(path)
                log.info("release staged", release=name)
            except ReleaseError as error:
                refused[name] = str(error)
                log.error("release refused", release=name, reason=str(error))
        self.opened, self.refused = opened, refused
