"""Feature state made from history: a new version of it, complete and up to date before anybody reads it.

Two histories are told apart:

* Rows before a time T (a dataset that was generated or imported, or an archive cut at T). The cut is exclusive: events
  before T, labels known before T. The new version's shards stand at the beginning of their logs, so workers go through
  everything the topics still hold; what the history held already is known by its id and changes nothing.
* An archive up to its end. The new version is stamped with the offsets that the archive ends at; workers go on there.

Either way there is neither a gap nor a double count, and the version is served when it has caught up with the one that
is served now (`state_versions`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import redis

from feature_store import keys as names
from feature_store import state_versions as versions
from feature_store import state_views
from feature_store.admission import UNSET_CLOCK
from feature_store.archived_log import ArchivedSource, all_admitted, event_points, label_points, with_what_they_label
from feature_store.dataset import load_sources
from feature_store.definitions import FeaturePlan
from feature_store.history import history_of, view_points
from feature_store.log_positions import ArchivedLogs
from feature_store.spark_groups import points_of
from feature_store.state_build import Written, write_states
from feature_store.warehouse import Warehouse

Advance = Callable[[int], None]
"""Told how many entities were written."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made: the version now served, and per view how many entities and bytes.

    `cut_us`: the cut of the history, or None for an archive up to its end.
    """

    version: str
    cut_us: int | None
    events: int
    entities: dict[str, int]
    state_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class States:
    """What was written of a version: by view; and by partition of the plan's source the clock at an archive's end."""

    views: dict[str, Written]
    clocks: dict[int, int]


class BuildStates(Protocol):
    """Writes the states of a version: in this process, or on Spark (`spark_rebuild.OnSpark`)."""

    def until(self, plan: FeaturePlan, shards: int, version: str, until_us: int, advance: Advance) -> States:
        """Of events before a time and labels known before it."""

    def archive(self, plan: FeaturePlan, shards: int, version: str, logs: ArchivedLogs, advance: Advance) -> States:
        """Of everything in the archive below its ends."""


@dataclass(frozen=True)
class InProcess:
    """All of the history in this process's memory: for some millions of events."""

    client: redis.Redis
    warehouse: str | Path

    def until(self, plan: FeaturePlan, shards: int, version: str, until_us: int, advance: Advance) -> States:
        reach = max(view.retention_us for view in plan.views)
        history = history_of(plan, *load_sources(self.warehouse, plan, until_us - reach, until_us, until_us))
        written = {}
        for view in plan.views:
            points, _ = view_points(view, history)
            keys = history.entities[view.entity.name].keys
            written[view.name] = write_states(self.client, view, keys, points, shards, version, advance)
        return States(written, {})

    def archive(self, plan: FeaturePlan, shards: int, version: str, logs: ArchivedLogs, advance: Advance) -> States:
        warehouse = Warehouse(self.warehouse)
        events, clocks = all_admitted(ArchivedSource(plan, None, logs.ends[plan.source.topic]), warehouse)
        labels = {
            label.name: all_admitted(ArchivedSource(plan, label, logs.ends[label.topic]), warehouse)[0]
            for label in plan.label_sources
        }
        written = {}
        for view in plan.views:
            given = event_points(plan, view, events)
            if view.label is not None:
                known = with_what_they_label(view, labels[view.label.name], events)
                given = pa.concat_tables([given, label_points(view, known)])
            keys, points = points_of(view, given)
            written[view.name] = write_states(self.client, view, keys.to_pylist(), points, shards, version, advance)
        return States(written, clocks)


def rebuild(
    client: redis.Redis,
    plan: FeaturePlan,
    warehouse: str | Path,
    until_us: int | None,
    shards: int,
    advance: Advance = lambda entities: None,
    *,
    build: BuildStates | None = None,
    logs: ArchivedLogs | None = None,
    wait_s: float = 600.0,
    at_once: bool = False,
    told: Callable[[versions.CatchUp], None] = lambda catch_up: None,
) -> Rebuilt:
    """Build state from a warehouse, write it as a new version, let the workers bring it up to date, then serve it.

    `until_us` None: of an archive up to its end, which `logs` gives (log_positions.archived_logs, asked before). Where
    no worker has ever written the served version, or with `at_once`, it is served as it is, to be brought up to date
    then. `told` hears how the catching up goes. `build`: in this process where not given. A rebuild that was stopped,
    at whatever moment, leaves nothing that is ever read; the next one deletes it.

    Raises DatasetError for the files, state_versions.NotCaughtUp after `wait_s`, state_versions.RebuildSuperseded,
    redis.exceptions.RedisError.
    """
    if (until_us is None) == (logs is None):
        raise ValueError("until_us or logs: the cut of a history, or the ends of an archive; one of them")
    build = build or InProcess(client, warehouse)
    version = versions.begin(client)
    if logs is None:
        assert until_us is not None
        states = build.until(plan, shards, version, until_us, advance)
        positions = _beginnings(plan, shards)
    else:
        states = build.archive(plan, shards, version, logs, advance)
        positions = logs.positions(plan, shards, states.clocks)
    base = f"{version}:{'archive' if until_us is None else until_us}"
    versions.write_positions(client, version, base, positions)
    client.hset(
        names.version_info(version),
        mapping={
            "dataset": Path(str(warehouse)).name,
            "cut_us": -1 if until_us is None else until_us,
            "built_at_us": time.time_ns() // 1_000,
        },
    )
    state_views.record(client, version, plan)
    versions.serve(client, plan, shards, version, wait_s, at_once, told)
    views = states.views
    return Rebuilt(
        version,
        until_us,
        max((w.events for w in views.values()), default=0),
        {name: w.entities for name, w in views.items()},
        {name: w.state_bytes for name, w in views.items()},
    )


def _beginnings(plan: FeaturePlan, shards: int) -> dict[tuple[str, int], dict[str, str | int]]:
    return {
        (entity.name, shard): {
            "topic": plan.topic_of(entity.name),
            "topic_id": "",
            "offset": 0,
            "clock": UNSET_CLOCK,
        }
        for entity in plan.entities
        for shard in range(shards)
    }
