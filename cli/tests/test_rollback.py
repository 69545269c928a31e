"""`trine release rollback` where a process says that it could not serve the release before."""

from __future__ import annotations

import pytest
import redis
from model_release.rollout import NotLoaded, Pointer
from model_release.rollout_store import GATEWAY, ProcessReport, RolloutStore
from trine_cli.rollout import roll_back

OLD, NEW = "fraud-000000000001", "fraud-000000000002"


def test_a_rollback_that_is_refused_can_be_forced(redis_url: str) -> None:
    store = RolloutStore(redis.Redis.from_url(redis_url))
    store.begin(Pointer("fraud", NEW, previous=OLD))
    store.report(ProcessReport(GATEWAY, "g/1", "fraud", {NEW: "", OLD: "the model server does not answer for it"}))
    with pytest.raises(NotLoaded, match=r"g/1: the model server does not answer .*--force"):
        roll_back(store, "fraud", shadow=False, wait_s=0)
    standing = store.read("fraud")
    assert standing is not None
    assert standing.current == NEW
    moved = roll_back(store, "fraud", shadow=False, wait_s=0, force=True)
    assert moved.changed
    assert (moved.now.current, moved.waiting) == (OLD, ["gateway g/1"])
    assert store.read("fraud") == moved.now
