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

log = get_logger(__name__)


class NoPlan(Exception):
    """The folder has no release with a plan that can be read; the message says what was looked for."""


def shown_plan(folder: Path, release: str, client: redis.Redis) -> FeaturePlan:
    """The plan of `release`; without a name, the views of all releases in the folder.

    A name of a view stands for what the served state has under it, and where nobody has said that yet, for what the
    release made last means by it. Releases that mean something else are passed over. Raises NoPlan.
    """
    try:
        if release:
            return _plan(_manifest(folder / release))
        plans = _plans(folder)
    except (OSError, ValueError, KeyError, TypeError, DefinitionError) as error:
        raise NoPlan(f"no feature plan found in {folder / release}: {error!r}") from error
    if not plans:
        raise NoPlan(f"no release in {folder}; make one with `trine train`")
    whole = _served_views(client)
    # Sorting is stable: among equals the one made last stays first.
    ordered = sorted(plans.items(), key=lambda item: fingerprints(item[1]).items() <= whole.items(), reverse=True)
    _, shown = ordered[0]
    for name, plan in ordered[1:]:
        try:
            shown = united(shown, plan)
        except DefinitionError as error:
            log.warning("views of a release are not shown", release=name, reason=str(error))
    return shown


def _plans(folder: Path) -> dict[str, FeaturePlan]:
    """By release, the one made last first; without those for batch jobs alone, whose plans no request carries."""
    found = [_manifest(path) for path in sorted(folder.iterdir()) if (path / "manifest.json").is_file()]
    found = [manifest for manifest in found if manifest.get("plan", {}).get("request_features")]
    found.sort(key=lambda manifest: str(manifest.get("created_at", "")), reverse=True)
    return {manifest["folder"]: _plan(manifest) for manifest in found}


def _plan(manifest: dict[str, Any]) -> FeaturePlan:
    return FeaturePlan.from_json(manifest["plan"])


def _manifest(release: Path) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads((release / "manifest.json").read_bytes())
    return found | {"folder": release.name}


def _served_views(client: redis.Redis) -> dict[str, str]:
    """By name their definitions' fingerprints; none where Redis is away or no worker has kept any."""
    try:
        return served(client).whole or {}
    except (redis.RedisError, OSError) as error:
        log.warning("not known which views are served", reason=str(error))
        return {}
