"""State bytes: every set of events and labels there and back, the same set the same bytes, every damage noticed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from feature_store import codec as codec_module
from feature_store.codec import StateCodec, StateCorrupt
from feature_store.definitions import Count, FeatureView, Mean, Share, Sum
from feature_store.kernel import Labels, Points
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_kernel import DISPUTES, ENTITY, SOURCE

Rows = list[tuple[int, int, int]]  # time, id, amount
Said = list[tuple[int, int, int, int]]  # time, id, known at, value

PLAIN = FeatureView("plain", ENTITY, SOURCE, (Count(), Mean("amount")), (timedelta(days=1),))
LABELLED = FeatureView(
    "labelled", ENTITY, SOURCE, (Sum("amount"), Share(DISPUTES, "bad")), (timedelta(days=1),), timedelta(days=7)
)
COUNTED = FeatureView("counted", ENTITY, SOURCE, (Count(),), (timedelta(days=1),))

# Spans that need 0, 1, 2, 4 and 8 bytes, in whole seconds, milliseconds and microseconds.
SPANS = st.sampled_from([0, 1, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 0x1_0000_0000, 10**12])
UNITS = st.sampled_from([1, 1_000, 1_000_000])
BASE = 1_600_000_000_123_456


@st.composite
def times(draw: st.DrawFn, n: int) -> list[int]:
    span, unit = draw(SPANS), draw(UNITS)
    base = draw(st.sampled_from([0, 1, BASE]))
    if not n:
        return []
    inner = [draw(st.integers(0, span)) for _ in range(n - 1)]
    return [base + s * unit for s in [*inner, span]]


@st.composite
def numbers(draw: st.DrawFn, n: int, low: int = 0) -> list[int]:
    span = draw(st.sampled_from([0, 1, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 0x1_0000_0000, 2**63 - 1]))
    base = draw(st.sampled_from([low, 0, 5])) if span < 2**62 else 0
    return [base + draw(st.integers(0, span)) for _ in range(n)]


@st.composite
def entities(draw: st.DrawFn) -> tuple[Rows, Said]:
    n, m = draw(st.integers(0, 8)), draw(st.integers(0, 5))
    rows = list(zip(draw(times(n)), draw(numbers(n)), draw(numbers(n, low=-(10**12))), strict=True))
    values = [draw(st.integers(0, 1)) for _ in range(m)]
    said = list(zip(draw(times(m)), draw(numbers(m)), draw(times(m)), values, strict=True))
    return rows, said


def points(view: FeatureView, sets: list[tuple[Rows, Said]]) -> Points:
    """What encode takes: all entities' rows in order, group = place in the list."""
    rows = sorted((g, *row) for g, (events, _) in enumerate(sets) for row in events)
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    labels = None
    if view.label:
        said = sorted((g, *word) for g, (_, words) in enumerate(sets) for word in words)
        group, time_us, id_, known, value = np.array(said, dtype=np.int64).reshape(-1, 5).T
        labels = Labels(group, id_, time_us, known, value)
    columns = {name: table[:, 3] for name in view.columns}
    return Points(table[:, 0], table[:, 1], table[:, 2], columns, labels)


def rows_of(p: Points) -> list[tuple[int, ...]]:
    columns = [p.group, p.time_us, p.id, *p.columns.values()]
    return list(zip(*(c.tolist() for c in columns), strict=True))


def labels_of(p: Points) -> list[tuple[int, ...]] | None:
    if p.labels is None:
        return None
    columns = [p.labels.group, p.labels.id, p.labels.time_us, p.labels.known_at_us, p.labels.value]
    return list(zip(*(c.tolist() for c in columns), strict=True))


def decode_all_at_once(codec: StateCodec, blobs: Sequence[bytes | None]) -> Points:
    """As decode does it for very many states."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "_FEW", -1)
        return codec.decode(blobs)


@settings(max_examples=120)
@given(st.lists(entities(), max_size=8), st.sampled_from([PLAIN, LABELLED, COUNTED]))
def test_there_and_back_and_many_at_once_as_one_by_one(sets: list[tuple[Rows, Said]], view: FeatureView) -> None:
    codec = StateCodec(view)
    given_ = points(view, sets)
    blobs = codec.encode(given_, len(sets))
    assert len(blobs) == len(sets)
    for back in (codec.decode(blobs), decode_all_at_once(codec, blobs)):
        assert rows_of(back) == rows_of(given_)
        assert labels_of(back) == labels_of(given_)
    assert all(a.dtype == np.int64 for a in (back.group, back.time_us, back.id, *back.columns.values()))
    assert [codec.encode(points(view, [one]), 1)[0] for one in sets] == blobs
    for i, blob in enumerate(blobs):
        alone = codec.decode([blob])
        assert rows_of(alone) == rows_of(points(view, [sets[i]]))
        assert labels_of(alone) == labels_of(points(view, [sets[i]]))


@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), entities()), max_size=20), st.sampled_from([PLAIN, LABELLED]))
def test_entities_without_state_keep_their_place(sets: list[tuple[Rows, Said] | None], view: FeatureView) -> None:
    codec = StateCodec(view)
    blobs = [None if s is None else codec.encode(points(view, [s]), 1)[0] for s in sets]
    filled = points(view, [s or ([], []) for s in sets])
    for back in (codec.decode(blobs), decode_all_at_once(codec, blobs)):
        assert rows_of(back) == rows_of(filled)
        assert labels_of(back) == labels_of(filled)


@pytest.mark.parametrize(
    ("span", "unit", "width"),
    [
        (0, 1, 0), (0xFF, 1, 1), (0x100, 1, 2), (0xFFFF, 1_000, 2), (0x1_0000, 1_000, 4),
        (0xFFFF_FFFF, 1_000_000, 4), (0x1_0000_0000, 1_000, 8), (0xFF, 1_000_000, 1),
    ],
)  # fmt: skip
def test_a_column_is_as_narrow_as_its_span_in_its_unit_allows(span: int, unit: int, width: int) -> None:
    codec = StateCodec(COUNTED)
    n = 64
    rows: Rows = [(BASE + (span * unit if i == n - 1 else 0), 5, 0) for i in range(n)]
    empty = len(codec.encode(points(COUNTED, [([], [])]), 1)[0])
    assert len(codec.encode(points(COUNTED, [(rows, [])]), 1)[0]) == empty + n * width


def full() -> tuple[StateCodec, bytes]:
    rows: Rows = [(BASE + 7 * i, 10**6 + i, 100 * i) for i in range(5)]
    said: Said = [(BASE + 7 * i, 10**6 + i, BASE * 2 + i, i % 2) for i in range(3)]
    codec = StateCodec(LABELLED)
    return codec, codec.encode(points(LABELLED, [(rows, said)]), 1)[0]


def test_every_changed_byte_is_noticed() -> None:
    codec, blob = full()
    for at in range(len(blob)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = blob[:at] + bytes([blob[at] ^ flip]) + blob[at + 1 :]
            with pytest.raises(StateCorrupt, match="view labelled: state 1 "):
                codec.decode([blob, damaged])


def test_every_other_length_is_noticed() -> None:
    codec, blob = full()
    for cut in range(len(blob)):
        with pytest.raises(StateCorrupt, match="state 0"):
            codec.decode([blob[:cut]])
    with pytest.raises(StateCorrupt, match="state 2"):
        codec.decode([None, blob, blob + b"\0" * 8])


def test_another_version_is_refused_by_its_number() -> None:
    codec, blob = full()
    with pytest.raises(StateCorrupt, match="has format 02000000, known is 01000000"):
        codec.decode([b"\x02" + blob[1:]])


def test_a_state_of_another_view_is_not_read_as_ones_own() -> None:
    codec, blob = full()
    counted = StateCodec(COUNTED)
    other = counted.encode(points(COUNTED, [([(1, 2, 3)] * 9, [])]), 1)
    for decode in (StateCodec.decode, decode_all_at_once):
        with pytest.raises(StateCorrupt, match="state 1 is not one of this view"):
            decode(counted, [*other, blob])
        with pytest.raises(StateCorrupt, match="state 1"):
            decode(codec, [blob, *other])
