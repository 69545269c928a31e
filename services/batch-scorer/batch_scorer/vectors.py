"""Feature vectors of recorded decisions, computed again from archived events: the only input is the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_store import admission
from feature_store.assemble import request_matrix
from feature_store.dataset import load_sources
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.history import EntityKeys, History, history_of
from feature_store.ids import id64
from feature_store.kernel import Int64s
from feature_store.keys import FIRST_VERSION
from feature_store.sharding import shard_of
from feature_store.updates import needs_tail
from numpy.typing import NDArray
from trine.events.v1.events_pb2 import DecisionRecord, ViewInput

from batch_scorer.archive import Archive, EntityTopic, LoggedEvents
from batch_scorer.entity_log import BASE, NEVER, EntityLog, Past, PastLabels, Seen
from batch_scorer.outcome import Difference


@dataclass(frozen=True, slots=True)
class Base:
    """The history that feature states were rebuilt from: events before `until_us`, labels known before it."""

    dataset: Path
    until_us: int

    def history(self, plan: FeaturePlan) -> History:
        """As feature_store.rebuild reads it. Raises feature_store.dataset.DatasetError."""
        reach = max(view.retention_us for view in plan.views)
        first_us = self.until_us - reach
        return history_of(plan, *load_sources(self.dataset, plan, first_us, self.until_us, self.until_us))


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """`rows` float32[n, features]; `usable` bool[n, features]: false where a feature could not be read then.

    `unfound`: by decision, what of its inputs the archive does not have, or what of them cannot be.
    """

    rows: NDArray[np.float32]
    usable: NDArray[np.bool_]
    unfound: dict[int, list[Difference]]


class VectorReplay:
    """Recomputes the vectors of one plan. Reads the archive's events once."""

    def __init__(self, plan: FeaturePlan, archive: Archive, base: Base | None) -> None:
        self._plan = plan
        self._base = base
        self.events = archive.events(plan)
        self._offset = _absorbed_at(plan, self.events)
        self._topics: dict[str, EntityTopic] = {
            entity.name: archive.entity_topic(plan, entity.name)
            for entity in plan.entities
            if any(view.rekeyed for view in plan.views_of(entity.name))
        }
        self._logs: dict[tuple[str, bool], EntityLog] = {}
        self._history: History | None = None
        by = np.argsort(self.events.id, kind="stable")
        self._by_id, self._ids = by, self.events.id[by]

    def event_rows(self, event_id: str) -> list[int]:
        """Rows of the archive's events with this id."""
        id_ = id64(event_id)
        first, last = np.searchsorted(self._ids, id_, "left"), np.searchsorted(self._ids, id_, "right")
        name = self._plan.source.id
        return [r for r in self._by_id[first:last].tolist() if getattr(self.events.message_at(r), name) == event_id]

    def vectors(self, records: Sequence[DecisionRecord], event_rows: Sequence[int]) -> Vectors:
        """`event_rows`: each decision's own event in the archive."""
        plan, n = self._plan, len(records)
        at = np.asarray(event_rows, dtype=np.int64)
        time_us, id_ = self.events.time_us[at], self.events.id[at]
        rows = np.zeros((n, len(plan.features)), dtype=np.float32)
        usable = np.zeros(rows.shape, dtype=np.bool_)
        own = len(plan.request_features)
        rows[:, :own] = request_matrix(plan, time_us, {name: v[at] for name, v in self.events.fields.items()})
        usable[:, :own] = True
        unfound: dict[int, list[Difference]] = {}
        column = own
        for view in plan.views:
            columns = slice(column, column := column + len(view.features))
            inputs = {i: v for i, r in enumerate(records) for v in r.inputs if v.view == view.name}
            keys = self._keys(view, at)
            read = []
            for i, record in enumerate(records):
                problem = self._problem(view, record, inputs.get(i), keys[i])
                if problem is not None:
                    unfound.setdefault(i, []).append(problem)
                elif i in inputs and not inputs[i].lost:
                    read.append(i)
            for first in (True, False):
                some = np.array(
                    [i for i in read if (inputs[i].state_version == FIRST_VERSION) is first], dtype=np.int64
                )
                if len(some):
                    self._replay_view(view, first, some, inputs, keys, time_us, id_, rows, columns, unfound)
                    usable[some, columns] = True
        return Vectors(rows, usable, unfound)

    def _replay_view(
        self, view: FeatureView, first_version: bool, some: Int64s, inputs: Mapping[int, ViewInput],
        keys: Sequence[str], time_us: Int64s, id_: Int64s, rows: NDArray[np.float32], columns: slice,
        unfound: dict[int, list[Difference]],
    ) -> None:  # fmt: skip
        chosen = [inputs[i] for i in some.tolist()]
        tails = [v.tail_ids for v in chosen]
        seen = Seen(
            keys=[keys[i] for i in some.tolist()],
            time_us=time_us[some],
            id=id_[some],
            offset=np.fromiter((v.offset for v in chosen), np.int64, len(chosen)),
            tail_of=np.repeat(np.arange(len(tails)), [len(t) for t in tails]),
            tail_id=np.fromiter((i for t in tails for i in t), np.int64, sum(map(len, tails))),
        )
        found = self._log(view, first_version).replay(seen)
        rows[some, columns] = found.values
        for i, ids in found.missing.items():
            reason = f"not in the archive as an event of {view.entity.name} {seen.keys[i]}: {_listed(ids)}"
            unfound.setdefault(int(some[i]), []).append(Difference(f"inputs.{view.name}.tail_ids", reason=reason))
        for i in np.flatnonzero(found.known != np.fromiter((v.known for v in chosen), np.bool_, len(chosen))).tolist():
            difference = Difference(f"inputs.{view.name}.known", chosen[i].known, bool(found.known[i]))
            unfound.setdefault(int(some[i]), []).append(difference)

    def _problem(
        self, view: FeatureView, record: DecisionRecord, read: ViewInput | None, key: str
    ) -> Difference | None:
        """Why this input cannot be what the view was read from; None where it can."""
        name = f"inputs.{view.name}"
        if read is None:
            # Where Redis did not answer there are no inputs at all, and the decision says so.
            return Difference(name, reason="the record does not say what was read") if record.inputs else None
        if read.lost:
            return None
        extent = self._topics[view.entity.name].extent if view.rekeyed else self.events.extent
        for field, recorded, right in (
            ("entity", read.entity, view.entity.name),
            ("key", read.key, key),
            ("topic", read.topic, view.topic),
            ("partition", read.partition, shard_of(key, extent.shards)),
        ):
            if recorded != right:
                return Difference(f"{name}.{field}", recorded, right)
        if read.topic_id and extent.topic_id and read.topic_id != extent.topic_id:
            reason = f"topic {view.topic} was made anew since; its earlier messages are not in the archive"
            return Difference(f"{name}.topic_id", read.topic_id, extent.topic_id, reason=reason)
        end = extent.ends.get(read.partition, 0)
        if not 0 <= read.offset <= end:
            reason = f"the archive of {view.topic}, partition {read.partition}, ends there"
            return Difference(f"{name}.offset", read.offset, end, reason=reason)
        if needs_tail(view) and id64(record.transaction.transaction_id) not in read.tail_ids:
            return Difference(f"{name}.tail_ids", reason="the decision's own event is not among them")
        if read.state_version != FIRST_VERSION and self._base is None:
            reason = "this state was rebuilt from a history that is not given (--transactions and --until)"
            return Difference(f"{name}.state_version", read.state_version, reason=reason)
        return None

    def _keys(self, view: FeatureView, at: Int64s) -> list[str]:
        entity = self.events.entities[view.entity.name]
        return [entity.keys[c] for c in entity.code[at].tolist()]

    def _log(self, view: FeatureView, first_version: bool) -> EntityLog:
        """The view's past; of a state that was rebuilt it begins with the base."""
        key = (view.name, first_version)
        if key not in self._logs:
            pasts, labels, others = self._logged(view)
            if not first_version and self._base is not None:
                if self._history is None:
                    self._history = self._base.history(self._plan)
                past, more = _of_history(view, self._history)
                pasts, labels = [past, *pasts], [*more, *labels]
            self._logs[key] = EntityLog(view, pasts, labels, others)
        return self._logs[key]

    def _logged(self, view: FeatureView) -> tuple[list[Past], list[PastLabels], list[tuple[EntityKeys, Int64s]]]:
        """What was absorbed from the view's topic: events, labels, and rows of sources that it does not use."""
        events, entity = self.events, view.entity.name
        columns = {name: events.fields[name] for name in view.columns}
        if not view.rekeyed:
            return [Past(events.entities[entity], events.time_us, events.id, columns, self._offset)], [], []
        rows = self._topics[entity].rows
        pasts, labels = [], []
        if (own := rows.get(view.source.name)) is not None:
            carried = {name: own.fields[name] for name in view.columns}
            pasts.append(Past(own.keys, own.time_us, own.id, carried, own.offset))
        # Not absorbed by way of this topic; a tail may show them before they were re-keyed.
        never = np.full(len(events.id), NEVER)
        if needs_tail(view) or not pasts:
            pasts.append(Past(events.entities[entity], events.time_us, events.id, columns, never))
        if view.label is not None and (known := rows.get(view.label.name)) is not None:
            assert known.known_at_us is not None
            labels.append(PastLabels(
                known.keys, known.time_us, known.id, known.known_at_us, known.fields["value"], known.offset
            ))  # fmt: skip
        used = {view.source.name, view.label.name if view.label is not None else ""}
        return pasts, labels, [(r.keys, r.offset) for name, r in rows.items() if name not in used]


def _absorbed_at(plan: FeaturePlan, events: LoggedEvents) -> Int64s:
    """The offset at which each event was absorbed: its own, or NEVER for one that the worker dead-lettered."""
    offset = events.offset.copy()
    starts = np.flatnonzero(np.diff(events.partition, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(offset)], strict=True):
        times, recorded = events.time_us[start:end], events.recorded_us[start:end]
        verdicts, _ = admission.judge(times, recorded, admission.UNSET_CLOCK, plan.lateness_us, plan.max_step_us)
        offset[start:end][verdicts != admission.OK] = NEVER
    return offset


def _of_history(view: FeatureView, history: History) -> tuple[Past, list[PastLabels]]:
    keys = history.entities[view.entity.name]
    columns = {name: history.fields[name] for name in view.columns}
    past = Past(keys, history.time_us, history.id, columns, np.full(len(history.id), BASE, dtype=np.int64))
    if view.label is None:
        return past, []
    known = history.labels[view.label.name]
    at = known.row
    labels = PastLabels(
        EntityKeys(keys.code[at], keys.keys), history.time_us[at], history.id[at], known.known_at_us, known.value,
        np.full(len(at), BASE, dtype=np.int64),
    )  # fmt: skip
    return past, [labels]


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
