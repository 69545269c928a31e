"""The plan that the service shows: all views that releases in the folder have, those that are served first.

Of a release only the plan is read: this service knows of no model, and verifies none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import redis
from service_kit.logs import get_logger

from feature_store.definitions import DefinitionError, FeaturePlan
from feature_store.plan_union import fingerprints, united
from feature_store.state_views import served

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, DefinitionError)

log = get_logger(__name__)


class NoPlan(Exception):
    """The folder has no release with a plan that can be read; the message says what was looked for."""


def shown_plan(folder: Path, release: str, client: redis.Redis) -> FeaturePlan:
    """The plan of `release`; without a name, the views of all releases of a model in the folder.

    A name of a view stands for what the served state has under it, and where nobody has said that yet, for what the
    release made last means by it. Releases that mean something else, or cannot be read, are passed over. Raises NoPlan.
    """
    if release:
        try:
            return FeaturePlan.from_json(_manifest(folder / release)["plan"])
        except _UNREADABLE as error:
            raise NoPlan(f"no feature plan found in {folder / release}: {error!r}") from error
    plans = _plans(folder)
    whole = _served_views(client)
    # Sorting is stable: among equals the one made last stays first.
    plans.sort(key=lambda named: fingerprints(named[1]).items() <= whole.items(), reverse=True)
    shown = plans[0][1]
    for name, plan in plans[1:]:
        if plan.model == shown.model:
            try:
                shown = united(shown, plan)
            except DefinitionError as error:
                log.warning("views of a release are not shown", release=name, reason=str(error))
    return shown


def _plans(folder: Path) -> list[tuple[str, FeaturePlan]]:
    """By release, the one made last first; without those for batch jobs alone, whose plans no request carries.

    Raises NoPlan where there is none.
    """
    found: list[tuple[str, str, FeaturePlan]] = []
    refused = ""
    try:
        paths = [path for path in folder.iterdir() if (path / "manifest.json").is_file()]
    except OSError as error:
        raise NoPlan(f"no feature plan found in {folder}: {error!r}") from error
    for path in paths:
        try:
            manifest = _manifest(path)
            if manifest.get("plan", {}).get("request_features"):
                found.append((str(manifest.get("created_at", "")), path.name, FeaturePlan.from_json(manifest["plan"])))
        except _UNREADABLE as error:
            refused = f"{path.name}: {error!r}"
            log.error("release refused", release=path.name, reason=repr(error))
    if not found:
        raise NoPlan(
            f"no release in {folder}{f' that can be read ({refused})' if refused else ''}; make one with `trine train`"
        )
    return [(name, plan) for _, name, plan in sorted(found, key=lambda one: one[:2], reverse=True)]


def _manifest(release: Path) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads((release / "manifest.json").read_bytes())
    return found


def _served_views(client: redis.Redis) -> dict[str, str]:
    """By name their definitions' fingerprints; none where Redis is away or no worker has kept any."""
    try:
        return served(client).whole or {}
    except (redis.RedisError, OSError) as error:
        log.warning("not known which views are served", reason=str(error))
        return {}
