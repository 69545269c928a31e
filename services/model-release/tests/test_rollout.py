"""The pointer's moves, a canary's sides, and what Redis keeps of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from model_release.rollout import (
    Canary,
    MoveRefused,
    Pointer,
    PointerMoved,
    Sides,
    promoted,
    rolled_back,
    with_canary,
    with_shadow,
    without_shadow,
)
from model_release.rollout_check import not_following, reasons_against
from model_release.rollout_store import GATEWAY, REGISTRAR, WORKER, ProcessReport, RolloutStore

A, B, C = "fraud-00000000000a", "fraud-00000000000b", "fraud-00000000000c"
START = Pointer("fraud", A)
keys = st.binary(min_size=1, max_size=64)
shares = st.floats(0.0001, 1.0)


def test_promotions_and_the_way_back() -> None:
    b = promoted(START, B)
    assert (b.current, b.previous) == (B, A)
    assert promoted(b, B) is b, "once more changes nothing"
    back = rolled_back(b)
    assert (back.current, back.previous) == (A, "")
    with pytest.raises(MoveRefused, match=A):
        rolled_back(back)  # a second operator does not bring B back


def test_a_canary_ends_by_rollback_and_by_promotion() -> None:
    canary = with_canary(START, B, 0.1, "salt")
    assert canary.releases == (A, B)
    assert rolled_back(canary) == START
    whole = promoted(canary, B)
    assert (whole.current, whole.canary, whole.previous) == (B, None, A)
    assert promoted(canary, A) == START, "everything on the current release again"
    more = with_canary(canary, B, 0.5, "another salt")
    assert more.canary == Canary(B, 0.5, "salt"), "who is in it stays in it"
    assert with_canary(more, B, 0.5, "x") is more
    with pytest.raises(MoveRefused, match=B):
        with_canary(canary, C, 0.1, "salt")
    with pytest.raises(MoveRefused, match="current"):
        with_canary(START, A, 0.1, "salt")
    with pytest.raises(MoveRefused, match="share"):
        with_canary(START, B, 0.0, "salt")


def test_a_shadow_answers_nobody() -> None:
    shadow = with_shadow(with_canary(START, B, 0.1, "salt"), C)
    assert shadow.releases == (A, B, C)
    assert with_shadow(shadow, C) is shadow
    for release in (A, B):
        with pytest.raises(MoveRefused, match="answers"):
            with_shadow(shadow, release)
    assert without_shadow(shadow).shadow == ""
    assert promoted(shadow, C).shadow == "", "who answers is no shadow any more"
    assert rolled_back(shadow).shadow == C


@given(keys, shares, shares)
def test_more_share_only_adds(key: bytes, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert key not in Sides(Canary(B, less, "salt")) or key in Sides(Canary(B, more, "salt"))
    assert key in Sides(Canary(B, 1.0, "salt"))


def test_a_share_is_that_share_and_another_salt_takes_others() -> None:
    customers = [str(n).encode() for n in range(20_000)]
    chosen = {c for c in customers if c in Sides(Canary(B, 0.1, "one"))}
    others = {c for c in customers if c in Sides(Canary(B, 0.1, "two"))}
    assert 0.09 < len(chosen) / len(customers) < 0.11
    assert 0.05 < len(chosen & others) / len(chosen) < 0.15


@given(
    st.builds(
        Pointer,
        st.just("fraud"),
        st.sampled_from([A, B]),
        st.integers(1, 2**31),
        st.sampled_from(["", C]),
        st.none() | st.builds(Canary, st.just(C), shares, st.text(max_size=16)),
        st.sampled_from(["", C]),
    )
)
def test_a_pointer_is_read_back(pointer: Pointer) -> None:
    assert Pointer.from_json(pointer.to_json()) == pointer
    assert Pointer.from_json(pointer.to_json()[:-1] + ',"of_a_later_version":1}') == pointer


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_the_first_to_begin_wins_and_a_move_is_a_compare_and_set(client: redis.Redis) -> None:
    store = RolloutStore(client)
    assert store.read("fraud") is None
    assert store.begin(START) == START
    assert store.begin(Pointer("fraud", B)) == START
    moved = store.move(START, promoted(START, B), "one")
    assert (moved.current, moved.generation, moved.who) == (B, 2, "one")
    assert store.read("fraud") == moved
    with pytest.raises(PointerMoved, match="by one"):
        store.move(START, promoted(START, C), "two")
    assert store.read("fraud") == moved
    client.flushdb()
    with pytest.raises(PointerMoved, match="gone"):
        store.move(moved, promoted(moved, C), "two")


def test_of_operators_at_once_one_moves_it(client: redis.Redis) -> None:
    store = RolloutStore(client)
    store.begin(START)
    outcomes: list[str] = []

    def operator(number: int) -> None:
        try:
            store.move(START, promoted(START, B if number % 2 else C), str(number))
            outcomes.append("moved")
        except PointerMoved:
            outcomes.append("told")

    threads = [threading.Thread(target=operator, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["moved"] + ["told"] * 7
    pointer = store.read("fraud")
    assert pointer is not None
    assert pointer.generation == 2


def test_reports_expire_and_are_withdrawn(client: redis.Redis) -> None:
    store = RolloutStore(client)
    gateway = ProcessReport(GATEWAY, "pod-1/7", "fraud", {A: ""}, 3, {A: {"v": "1"}}, {}, 5)
    store.report(gateway)
    store.report(ProcessReport(REGISTRAR, "pod-2/7"))
    store.report(ProcessReport(GATEWAY, "pod-3/7", "other"))
    store.report(ProcessReport(WORKER, "gone", "fraud"), expires_s=0.001)
    assert [r.name for r in store.reports("fraud") if r.name != "gone"] == ["pod-1/7", "pod-2/7"]
    assert store.reports("fraud")[0] == gateway
    end = [r.name for r in store.reports("fraud")]
    while "gone" in end:
        end = [r.name for r in store.reports("fraud")]
    store.withdraw(GATEWAY, "pod-1/7")
    assert [r.name for r in store.reports("fraud")] == ["pod-2/7"]


def test_who_speaks_against_a_promotion_is_named() -> None:
    needs = {B: {"customer": "1", "terminal": "2"}}
    gateway = ProcessReport(GATEWAY, "g-1", "fraud", {A: "", B: ""}, 1, needs)
    registrar = ProcessReport(REGISTRAR, "r-1", releases={A: "", B: ""})
    worker = ProcessReport(WORKER, "w-1", "fraud", keeps={"customer": "1", "terminal": "2"})
    assert reasons_against(B, [gateway, registrar, worker]) == []
    assert reasons_against(B, [gateway, worker]) == [], "a TorchServe of one's own has no registrar"
    assert reasons_against(B, [registrar, worker]) == ["no gateway has reported to this Redis"]
    old = ProcessReport(GATEWAY, "g-2", "fraud", {A: ""}, 1, needs)
    bad = ProcessReport(REGISTRAR, "r-2", releases={A: "", B: "golden row 3 differs"})
    assert reasons_against(B, [gateway, old, registrar, bad, worker]) == [
        "gateway g-2: has not loaded it", "registrar r-2: golden row 3 differs",
    ]  # fmt: skip
    other = ProcessReport(WORKER, "w-2", "fraud", keeps={"customer": "1", "terminal": "other"})
    assert reasons_against(B, [gateway, worker, other]) == [
        "worker w-2: does not keep terminal as this release defines it"
    ]
    assert "no worker has reported" in reasons_against(B, [gateway])[0]
    assert reasons_against(B, [gateway], workers=False) == []
    assert not_following(2, [gateway, worker]) == ["gateway g-1"]
