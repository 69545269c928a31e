"""The spool's files: what was appended is read back whatever happens to the end of the file, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_gateway.errors import SpoolFull, SpoolLocked, SpoolUnwritable
from inference_gateway.spool import Place, Spool, adopt_orphans
from inference_gateway.spool_format import Message, blocks, encode_messages, messages

LIMIT = 1 << 22

a_message = st.builds(
    Message, st.integers(0, 255), st.integers(0, 65_535), st.binary(max_size=64), st.binary(max_size=300)
)
batches = st.lists(st.lists(a_message, min_size=1, max_size=5), min_size=1, max_size=8)


def read_all(spool: Spool) -> list[list[Message]]:
    return [found for segment in spool.segments for _, found in spool.read(segment, 0)]


def crashed_copy(folder: Path) -> Path:
    """The folder as a killed process leaves it: files without the lock's holder."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(folder, copy))


@given(batches, st.data())
@settings(max_examples=60)
def test_a_crash_at_any_byte_loses_no_block_that_was_whole(written: list[list[Message]], data: st.DataObject) -> None:
    with TemporaryDirectory() as base:
        spool = Spool(Path(base) / "spool", max_bytes=LIMIT)
        places = [spool.append(batch) for batch in written]
        copy = crashed_copy(spool.folder)
        spool.close()
        (file,) = copy.glob("*.wal")
        size = file.stat().st_size
        kept = data.draw(st.integers(0, size), label="bytes that reached the file")
        with file.open("r+b") as f:
            f.truncate(kept)
        again = Spool(copy, max_bytes=LIMIT)
        whole = [batch for batch, place in zip(written, places, strict=True) if place.end <= kept]
        assert read_all(again) == whole
        assert sum(s.unacked for s in again.segments) == sum(map(len, whole))
        again.close()


@given(batches, st.data())
@settings(max_examples=60)
def test_damage_costs_the_damaged_block_only(written: list[list[Message]], data: st.DataObject) -> None:
    parts = [encode_messages(i * 10, batch) for i, batch in enumerate(written)]
    raw = bytearray(b"".join(parts))
    at = data.draw(st.integers(0, len(raw) - 1), label="damaged byte")
    raw[at] ^= data.draw(st.integers(1, 255), label="flipped bits")
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
    hit = next(i for i, end in enumerate(ends) if at < end)
    sound = [batch for i, batch in enumerate(written) if i != hit]
    assert [messages(block) for block in blocks(bytes(raw))] == sound


@given(batches, st.data())
@settings(max_examples=40)
def test_voided_messages_are_known_after_a_crash(written: list[list[Message]], data: st.DataObject) -> None:
    with TemporaryDirectory() as base:
        spool = Spool(Path(base) / "spool", max_bytes=LIMIT, segment_bytes=1 << 9)
        expected: set[int] = set()
        for batch in written:
            place = spool.append(batch)
            gone = data.draw(st.sets(st.integers(0, len(batch) - 1)), label="voided")
            if gone:
                spool.void(place, sorted(gone))
                expected |= {place.first + i for i in gone}
        copy = crashed_copy(spool.folder)
        total = sum(map(len, written))
        spool.close()
        again = Spool(copy, max_bytes=LIMIT)
        alive = {s for segment in again.segments for s in segment.voided}
        assert alive <= expected
        assert sum(s.unacked for s in again.segments) == total - len(expected)
        again.close()


def test_what_kafka_has_is_deleted_oldest_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=LIMIT, segment_bytes=1)
    places = [spool.append([Message(0, 1, b"k", b"v" * 100)]) for _ in range(4)]
    assert len(list(spool.folder.glob("*.wal"))) == 4
    spool.acked(places[1].segment, 1)
    assert len(list(spool.folder.glob("*.wal"))) == 4, "an older one is not acknowledged yet"
    spool.acked(places[0].segment, 1)
    assert len(list(spool.folder.glob("*.wal"))) == 2
    assert spool.size == sum(f.stat().st_size for f in spool.folder.glob("*.wal"))
    spool.acked(places[2].segment, 1)
    spool.acked(places[3].segment, 1)
    spool.close()
    assert not list(spool.folder.glob("*.wal"))


def test_the_limit_holds_and_keeps_room_for_decisions(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 16, reserve_bytes=1 << 14)
    batch = [Message(0, 0, b"key", b"x" * 1_000)]

    def fill(reserved: bool) -> int:
        count = 0
        while True:
            try:
                spool.append(batch, reserved=reserved)
            except SpoolFull:
                return count
            count += 1

    taken = fill(reserved=False)
    assert taken * 1_000 > (1 << 16) - (1 << 14) - 4_000
    assert fill(reserved=True) * 1_000 > (1 << 14) - 4_000
    assert spool.size <= 1 << 16
    assert len(read_all(spool)) > taken
    spool.close()


def test_a_disk_that_refuses_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    spool = Spool(tmp_path / "spool", max_bytes=LIMIT)
    first = [Message(0, 0, b"a", b"1")]
    spool.append(first)
    real = os.write
    calls = iter([7])

    def full_disk(file: int, data: bytes) -> int:
        size = next(calls, None)
        if size is None:
            raise OSError(28, "No space left on device")
        return real(file, bytes(data)[:size])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full_disk)
        with pytest.raises(SpoolUnwritable, match="No space left"):
            spool.append([Message(0, 0, b"b", b"2" * 500)])
    last = [Message(0, 0, b"c", b"3")]
    spool.append(last)
    assert read_all(spool) == [first, last]
    spool.close()


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=LIMIT)
    with pytest.raises(SpoolLocked, match="in use"):
        Spool(tmp_path / "spool", max_bytes=LIMIT)
    spool.close()
    Spool(tmp_path / "spool", max_bytes=LIMIT).close()


def test_reading_goes_on_from_a_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26)
    big = [[Message(1, i, b"k", bytes([i]) * 300_000)] for i in range(40)]
    places: list[Place] = [spool.append(batch) for batch in big]
    segment = places[0].segment
    assert [m for _, m in spool.read(segment, places[5].start)] == [
        b for b, p in zip(big, places, strict=True) if p.segment is segment
    ][5:]
    assert read_all(spool) == big
    spool.close()


def test_fewer_processes_take_over_what_the_others_left(tmp_path: Path) -> None:
    left: list[list[Message]] = []
    for number in range(4):
        spool = Spool(tmp_path / str(number), max_bytes=LIMIT)
        left.append([Message(0, number, b"k", b"v")])
        spool.append(left[-1])
        spool.close()
    in_use = Spool(tmp_path / "3", max_bytes=LIMIT)
    assert adopt_orphans(tmp_path, 2) == 1
    spool = Spool(tmp_path / "0", max_bytes=LIMIT)
    assert sorted(read_all(spool)) == [left[0], left[2]]
    assert read_all(in_use) == [left[3]]
    spool.close()
    in_use.close()
