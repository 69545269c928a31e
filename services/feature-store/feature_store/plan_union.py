"""One plan for several releases that are served side by side, and where each one's features lie in it.

Their views may differ, but a view's name stands for one definition: its state is kept once, under that name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import DefinitionError, FeaturePlan, FeatureView


def fingerprints(plan: FeaturePlan) -> dict[str, str]:
    """By view, sixteen hex digits that change with anything that its state or features depend on."""
    described = plan.to_json()
    shared = [described["source"], described["max_step_us"]]
    return {
        view["name"]: hashlib.sha256(json.dumps([view, *shared], sort_keys=True).encode()).hexdigest()[:16]
        for view in described["views"]
    }


def united(first: FeaturePlan, second: FeaturePlan) -> FeaturePlan:
    """A plan with the features of both; `first` itself where it has them all.

    Raises DefinitionError where they cannot be served side by side; it says what to change.
    """
    for what, one, other in (
        ("its source", first.source, second.source),
        ("its lateness", first.lateness_us, second.lateness_us),
        ("max_step", first.max_step, second.max_step),
    ):
        if one != other:
            raise DefinitionError(f"plan {second.model}: {what} is {other}, not {one} as of what serves")
    views: dict[str, FeatureView] = {view.name: view for view in first.views}
    for view in second.views:
        if views.setdefault(view.name, view) != view:
            raise DefinitionError(
                f"view {view.name}: is defined otherwise by what serves; give the changed view a name of its own"
            )
    requests = {feature.name: feature for feature in first.request_features}
    for feature in second.request_features:
        if requests.setdefault(feature.name, feature) != feature:
            raise DefinitionError(f"feature {feature.name}: is defined otherwise by what serves; give it another name")
    if len(views) == len(first.views) and len(requests) == len(first.request_features):
        return first
    return FeaturePlan(first.model, first.source, tuple(requests.values()), tuple(views.values()), first.max_step)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A plan's features within a united one: `columns` int[F] of its vectors, `views` by their place there."""

    columns: NDArray[np.intp]
    views: tuple[int, ...]


def part_of(plan: FeaturePlan, whole: FeaturePlan) -> Part | None:
    """Where `plan` lies in `whole`; None where they are laid out alike. Raises DefinitionError: not in it."""
    if plan.views == whole.views and plan.request_features == whole.request_features:
        return None
    places = {name: at for at, name in enumerate(whole.features)}
    names = {view.name: at for at, view in enumerate(whole.views)}
    if missing := [view.name for view in plan.views if view not in whole.views]:
        raise DefinitionError(f"views {', '.join(missing)} are not read here")
    columns: Sequence[int] = [places[name] for name in plan.features]
    return Part(np.array(columns, dtype=np.intp), tuple(names[view.name] for view in plan.views))
