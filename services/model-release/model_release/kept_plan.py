"""The plan whose views a worker keeps: of the release that serves, and of those staged beside it.

What is staged is kept from the start, so that a rebuild finds workers that follow its new views.
"""

from __future__ import annotations

from pathlib import Path

from feature_store.definitions import DefinitionError, FeaturePlan
from feature_store.plan_union import united
from service_kit.logs import get_logger

from model_release.errors import ReleaseError
from model_release.release import Release, list_request_releases, open_release
from model_release.rollout import Pointer

log = get_logger(__name__)


def first_release(releases: Path, named: str = "") -> Release:
    """The one that is named, or the one made last that can be opened. Raises ReleaseError."""
    if named:
        return open_release(releases / named)
    found = _opened(list_request_releases(releases))
    if not found:
        raise ReleaseError(f"{releases}: no release there that can be opened; make one with `trine train`")
    return max(found, key=lambda release: release.manifest.created_at)


def kept_plan(releases: Path, first: Release, pointer: Pointer | None) -> FeaturePlan:
    """All views of the releases that the pointer names, and of others in the folder that go with them.

    `first`: what serves where there is no pointer. Raises ReleaseError where a release that the pointer names cannot be
    opened, DefinitionError where two of them cannot be served side by side.
    """
    plan, named = first.plan, {first.id}
    if pointer is not None and pointer.model == first.manifest.model:
        named = set(pointer.releases)
        plan = open_release(releases / pointer.current).plan
        for name in pointer.releases[1:]:
            plan = united(plan, open_release(releases / name).plan)
    others = [path for path in list_request_releases(releases) if path.name not in named]
    for release in sorted(_opened(others), key=lambda release: release.manifest.created_at, reverse=True):
        if release.manifest.model == plan.model:
            try:
                plan = united(plan, release.plan)
            except DefinitionError as error:
                log.warning("views of a staged release are not kept", release=release.id, reason=str(error))
    return plan


def _opened(paths: list[Path]) -> list[Release]:
    found = []
    for path in paths:
        try:
            found.append(open_release(path))
        except ReleaseError as error:
            log.error("release refused", release=path.name, reason=str(error))
    return found
