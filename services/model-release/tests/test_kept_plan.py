"""Which views a worker keeps: of what serves, and of what is staged beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from feature_store.definitions import Count, days
from model_release import ReleaseError
from model_release.kept_plan import first_release, kept_plan
from model_release.rollout import Pointer
from model_release.testing import write_toy_release

from models.fraud.features import PLAN

CUSTOMER = PLAN.views[0]
RUSH = replace(CUSTOMER, name="customer_rush", aggregations=(Count(),), windows=(timedelta(hours=1),))
WITH_RUSH = replace(PLAN, views=(*PLAN.views, RUSH))
CHANGED = replace(PLAN, views=(replace(CUSTOMER, windows=days(2)), *PLAN.views[1:]))


def test_the_views_of_all_that_go_together_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="no release"):
        first_release(tmp_path)
    plain = write_toy_release(tmp_path, PLAN, seed=1)
    assert kept_plan(tmp_path, first_release(tmp_path), None) == PLAN
    write_toy_release(tmp_path, WITH_RUSH, seed=2)
    changed = write_toy_release(tmp_path, CHANGED, seed=3)
    first = first_release(tmp_path, plain.id)
    assert {view.name for view in kept_plan(tmp_path, first, None).views} == {view.name for view in WITH_RUSH.views}
    # What serves goes first, whatever the settings name; the others as far as they go with it.
    kept = kept_plan(tmp_path, first, Pointer("fraud", changed.id))
    assert kept.views[0] == CHANGED.views[0]
    assert RUSH not in kept.views, "its release also has the view that was changed"
    with pytest.raises(ReleaseError, match="fraud-000000000000"):
        kept_plan(tmp_path, first, Pointer("fraud", "fraud-000000000000"))
    assert kept_plan(tmp_path, first, Pointer("churn", "churn-000000000000")).views[0] == CUSTOMER
