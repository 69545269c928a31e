"""The window kernel against brute force: ties, borders, delays, labels in any order, and times of a whole century."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from feature_store import kernel
from feature_store.definitions import (
    Aggregation,
    Count,
    Entity,
    FeatureView,
    LabelSource,
    Mean,
    Share,
    Source,
    Sum,
)
from feature_store.kernel import LAST_ID, Labels, Points, Queries, view_features, window_sums
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.feature_oracle import Event, Report, view_row

ENTITY = Entity("card", "card")
SOURCE = Source("payments", "m.Payment", "payments", key="card", id="id", time="at_us", fields=("amount",))
DISPUTES = LabelSource("disputes", "m.Dispute", "disputes", "id", "id", "at_us", "known_at_us", "bad", labels=SOURCE)
SECOND = 1_000_000
YEAR_2000, YEAR_2100 = 946_684_800 * SECOND, 4_102_444_800 * SECOND
WIDE_GROUPS = 1_900  # a century of microseconds times so many entities does not fit an int64


def view(windows: Sequence[int], delay: int, labelled: bool) -> FeatureView:
    """A view with windows and delay in seconds."""
    aggregations: tuple[Aggregation, ...] = (Count(), Sum("amount"), Mean("amount"))
    if labelled:
        aggregations = (*aggregations, Share(DISPUTES, "bad"))
    spans = tuple(timedelta(seconds=w) for w in windows)
    return FeatureView("v", ENTITY, SOURCE, aggregations, spans, delay=timedelta(seconds=delay))


def points_of(events: Sequence[Event], reports: Sequence[tuple[int, Report]] | None) -> Points:
    """Events as the kernel takes them; a report goes with the group of the entity it was filed under."""
    rows = sorted((int(e.keys["card"]), e.time_us, int(e.id), e.fields["amount"]) for e in events)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
    labels = None
    if reports is not None:
        said = [(g, int(r.id), r.time_us, r.known_at_us, int(r.value)) for g, r in reports]
        labels = Labels(*np.array(said, dtype=np.int64).reshape(-1, 5).T)
    return Points(columns[:, 0], columns[:, 1], columns[:, 2], {"amount": columns[:, 3]}, labels)


def expected(
    v: FeatureView, events: Sequence[Event], reports: Sequence[tuple[int, Report]], q: Queries
) -> list[list[float]]:
    out = []
    for group, at, own in zip(q.group.tolist(), q.time_us.tolist(), q.id.tolist(), strict=True):
        filed = [r for g, r in reports if g == group]
        out.append(view_row(v, events, filed, str(group), at, None if own == LAST_ID else str(own)))
    return out


# Small numbers make ties and borders the rule; whole seconds and the microseconds beside them both occur.
NARROW = st.builds(lambda s, d: s * SECOND + d, st.integers(0, 20), st.sampled_from([0, 0, 0, -1, 1]))
WIDE = st.one_of(
    st.integers(YEAR_2000, YEAR_2100),
    st.builds(lambda s: YEAR_2000 + s * SECOND, st.integers(0, 20)),
    st.builds(lambda s: YEAR_2100 - s * SECOND, st.integers(0, 20)),
)
AMOUNTS = st.one_of(st.integers(1, 100), st.integers(10**12 - 100, 10**12))


@st.composite
def cases(
    draw: st.DrawFn, times: st.SearchStrategy[int], groups: Sequence[int]
) -> tuple[FeatureView, list[Event], list[tuple[int, Report]], Queries]:
    labelled = draw(st.booleans())
    windows = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True))
    delay = draw(st.integers(1, 10)) if labelled else draw(st.sampled_from([0, 0, 3]))
    group = st.sampled_from(groups)
    ids = draw(st.lists(st.integers(0, 60), unique=True, max_size=25))
    events = [Event(str(i), draw(times), {"card": str(draw(group))}, {"amount": draw(AMOUNTS)}) for i in ids]
    reports = []
    if labelled:
        known_id = st.sampled_from(ids) if ids else st.integers(0, 60)
        for _ in range(draw(st.integers(0, 25))):
            i = draw(st.one_of(known_id, known_id, known_id, st.integers(0, 60)))
            event = next((e for e in events if e.id == str(i)), None)
            # Also under a foreign entity, and known before the event took place.
            filed = int(event.keys["card"]) if event and draw(st.integers(0, 9)) else draw(group)
            when = event.time_us if event else draw(times)
            reports.append((filed, Report(str(i), draw(times), draw(st.booleans()), when)))
    asked = [(int(e.keys["card"]), e.time_us, int(e.id)) for e in events]
    for _ in range(draw(st.integers(0, 6))):
        asked.append((draw(group), draw(times), draw(st.sampled_from([LAST_ID, 0, 30]))))
    # Exactly on the borders of a window that ends and of one that begins with an event.
    asked += [(g, t + s * SECOND, LAST_ID) for g, t, _ in asked[:4] for s in (delay, delay + windows[0], windows[0])]
    q = np.array(asked, dtype=np.int64).reshape(-1, 3)
    return view(windows, delay, labelled), events, reports, Queries(q[:, 0], q[:, 1], q[:, 2])


def check(case: tuple[FeatureView, list[Event], list[tuple[int, Report]], Queries]) -> None:
    v, events, reports, queries = case
    points = points_of(events, reports if v.label else None)
    right = expected(v, events, reports, queries)
    for few_pairs, many_points in ((0, 1 << 20), (1 << 20, 0)):  # labels by sorting, pair by pair; all rows, a bitmap
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "_FEW_PAIRS", few_pairs)
            patch.setattr(kernel, "_MANY_POINTS", many_points)
            sums = window_sums(points, queries, v.windows_us, v.delay_us)
        assert sums.count.dtype == np.int64
        assert view_features(v, sums).tolist() == right


@settings(max_examples=200)
@given(cases(NARROW, groups=[0, 1, 2, 5]))
def test_equals_brute_force(case: tuple[FeatureView, list[Event], list[tuple[int, Report]], Queries]) -> None:
    check(case)


@settings(max_examples=100)
@given(cases(WIDE, groups=[0, 1, WIDE_GROUPS]))
def test_equals_brute_force_over_a_century(
    case: tuple[FeatureView, list[Event], list[tuple[int, Report]], Queries],
) -> None:
    check(case)


def test_a_century_times_many_entities_needs_ranks() -> None:
    """Guards the test above: its times and groups are past what one int64 can hold."""
    assert WIDE_GROUPS * (YEAR_2100 - YEAR_2000) > 1 << 62


def one(v: FeatureView, events: Sequence[Event], at: int, own: int = LAST_ID, *reports: Report) -> list[float]:
    points = points_of(events, [(0, r) for r in reports] if v.label else None)
    query = Queries(np.array([0]), np.array([at]), np.array([own]))
    row: list[float] = view_features(v, window_sums(points, query, v.windows_us, v.delay_us))[0].tolist()
    return row


def at(time_s: float, id_: int = 0, amount: int = 100) -> Event:
    return Event(str(id_), int(time_s * SECOND), {"card": "0"}, {"amount": amount})


def test_window_is_open_at_its_start_and_closed_at_its_end() -> None:
    v = view([10], 0, labelled=False)
    assert one(v, [at(10)], 20 * SECOND)[0] == 0
    assert one(v, [at(10)], 20 * SECOND - 1)[0] == 1
    assert one(v, [at(20)], 20 * SECOND)[0] == 1
    assert one(v, [at(20)], 20 * SECOND - 1)[0] == 0


def test_delay_moves_both_borders() -> None:
    v = view([10], 5, labelled=False)
    assert [one(v, [at(20)], t * SECOND + d)[0] for t, d in ((25, -1), (25, 0), (35, -1), (35, 0))] == [0, 1, 1, 0]


def test_ties_in_time_are_ordered_by_id() -> None:
    v = view([10], 0, labelled=False)
    same = [at(20, i, amount=10**i) for i in range(5)]
    assert [one(v, same, 20 * SECOND, own)[1] for own in (0, 2, 4)] == [1, 111, 11_111]
    assert one(v, same, 20 * SECOND)[1] == 11_111
    # A delayed window knows no own event: all of a tie are in it.
    assert one(view([10], 5, labelled=False), same, 25 * SECOND, 2)[1] == 11_111


@pytest.mark.timeout(10)
def test_many_ties_do_not_take_a_walk_each() -> None:
    n = 40_000
    points = Points(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.arange(n))
    queries = Queries(points.group, points.time_us, points.id)
    sums = window_sums(points, queries, (SECOND,), 0)
    assert sums.count[:, 0].tolist() == list(range(1, n + 1))


def test_labels_count_as_known_at_the_time() -> None:
    v = view([1_000], 5, labelled=True)
    event = [at(20)]

    def share(t: float, *reports: Report) -> float:
        return one(v, event, int(t * SECOND), LAST_ID, *reports)[3]

    said = Report("0", 100 * SECOND, True, 20 * SECOND)
    assert [share(t, said) for t in (99, 100, 101)] == [0, 1, 1]
    withdrawn = Report("0", 200 * SECOND, False, 20 * SECOND)
    again = Report("0", 300 * SECOND, True, 20 * SECOND)
    assert [share(t, said, withdrawn) for t in (199, 200)] == [1, 0]
    assert [share(t, withdrawn, again, said) for t in (99, 150, 250, 300)] == [0, 1, 0, 1]
    before = Report("0", 1 * SECOND, True, 20 * SECOND)  # known before its event took place
    assert [share(t, before) for t in (24, 25)] == [0, 1]
    # Two words at one moment: the worse one holds, in either order.
    other = Report("0", 100 * SECOND, False, 20 * SECOND)
    assert share(100, said, other) == share(100, other, said) == 1
    assert share(100, Report("9", 50 * SECOND, True)) == 0
    assert share(2_000, said) == 0


def test_no_points_no_queries_and_strangers() -> None:
    v = view([10], 5, labelled=True)
    assert one(v, [], 20 * SECOND) == [0, 0, 0, 0]
    points = points_of([at(1)], [])
    nobody = Queries(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    assert window_sums(points, nobody, v.windows_us, v.delay_us).count.shape == (0, 1)
    stranger = Queries(np.array([7, 0]), np.array([8 * SECOND] * 2), np.array([LAST_ID] * 2))
    assert window_sums(points, stranger, v.windows_us, v.delay_us).count.tolist() == [[0], [1]]


def test_sums_of_others_do_not_overflow_ones_own() -> None:
    """Prefix sums run over all entities and wrap; differences of them are right as long as one window's sum fits."""
    big = 2**62 - 1
    events = [Event(str(i), i * SECOND, {"card": str(g)}, {"amount": big}) for i, g in enumerate([0, 0, 1, 1, 2, 2])]
    v = view([100], 0, labelled=False)
    queries = Queries(np.arange(3), np.full(3, 50 * SECOND), np.full(3, LAST_ID))
    sums = window_sums(points_of(events, None), queries, v.windows_us, 0)
    assert sums.sums["amount"].tolist() == [[2 * big]] * 3
