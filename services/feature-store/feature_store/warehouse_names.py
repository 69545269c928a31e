"""Names of archived files, and which rows of which file count where their offsets overlap. No I/O.

A *log* is one life of a topic: its name and eight hex digits of Kafka's id of it, `trine.transactions.5f3a9c1e`, so
that a topic made anew (its offsets begin at 0 again) is another log.

    <log>-<partition>-<first offset>-<last offset>.parquet   every row of these offsets that belongs to the file's day
    <log>-shared-<16 hex>.parquet                            the same of several ranges, which its footer lists; the
                                                             digits are a hash of them

Whatever wrote a file, its content follows from its ranges alone. So files may overlap, contain or repeat each other:
`resolve` takes every offset from one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import xxhash

Span = tuple[int, int]
"""First and last offset, both inside."""
Coverage = Mapping[int, Sequence[Span]]
"""Partition → spans, sorted and apart."""

SUFFIX = ".parquet"
RANGES_KEY = b"trine.ranges"
EMPTY_FOLDER = "_empty"
"""Beside a source's days: empty files, named like others without `.parquet`, for ranges that left no row."""
_SHARED = "shared"
_NAME = re.compile(r"(?P<log>.+)-(?:(?P<partition>\d+)-(?P<first>\d+)-(?P<last>\d+)|shared-[0-9a-f]{16})")


@dataclass(frozen=True, slots=True)
class ArchivedName:
    """What a file's name says; `coverage` is None where the footer has to be asked."""

    log: str
    coverage: Coverage | None


def log_name(topic: str, topic_id: str) -> str:
    """`topic_id`: Kafka's own."""
    return f"{topic}.{xxhash.xxh3_64_hexdigest(topic_id.encode())[:8]}"


def parsed(name: str) -> ArchivedName | None:
    """`name` without `.parquet`; None for one that is not an archived file's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    if found["partition"] is None:
        return ArchivedName(found["log"], None)
    first, last = int(found["first"]), int(found["last"])
    return ArchivedName(found["log"], {int(found["partition"]): [(first, last)]}) if first <= last else None


def file_name(log: str, coverage: Coverage) -> str:
    """The one name for these ranges, with `.parquet`."""
    spans = [(p, *span) for p in sorted(coverage) for span in coverage[p]]
    if len(spans) == 1:
        partition, first, last = spans[0]
        return f"{log}-{partition}-{first}-{last}{SUFFIX}"
    return f"{log}-{_SHARED}-{xxhash.xxh3_64_hexdigest(_listed(coverage))}{SUFFIX}"


def footer_ranges(coverage: Coverage) -> dict[bytes, bytes]:
    """What a shared file's footer says of its ranges."""
    return {RANGES_KEY: _listed(coverage)}


def ranges_of(metadata: Mapping[bytes, bytes] | None) -> Coverage | None:
    """The ranges in a footer; None where there are none."""
    text = (metadata or {}).get(RANGES_KEY)
    if text is None:
        return None
    return union({int(p): [(int(a), int(b))]} for p, a, b in json.loads(text))


def _listed(coverage: Coverage) -> bytes:
    spans = [[p, *span] for p in sorted(coverage) for span in coverage[p]]
    return json.dumps(spans, separators=(",", ":")).encode()


def union(coverages: Iterable[Coverage]) -> dict[int, list[Span]]:
    """Everything that any of them covers; neighbours joined."""
    spans: dict[int, list[Span]] = {}
    for coverage in coverages:
        for partition, own in coverage.items():
            spans.setdefault(partition, []).extend(own)
    return {partition: _joined(own) for partition, own in spans.items()}


def minus(coverage: Coverage, taken: Coverage) -> dict[int, list[Span]]:
    """What of `coverage` is not in `taken`."""
    out: dict[int, list[Span]] = {}
    for partition, own in coverage.items():
        left: list[Span] = []
        others = taken.get(partition, ())
        for first, last in own:
            at = first
            for a, b in others:
                if b < at:
                    continue
                if a > last:
                    break
                if a > at:
                    left.append((at, a - 1))
                at = b + 1
            if at <= last:
                left.append((at, last))
        if left:
            out[partition] = left
    return out


def size(coverage: Coverage) -> int:
    """How many offsets."""
    return sum(last - first + 1 for own in coverage.values() for first, last in own)


def resolve(files: Mapping[str, tuple[str, Coverage]]) -> dict[str, Coverage | None]:
    """File → what of it counts: None for all of it, nothing for one that others cover; larger ones go first.

    `files`: file → log and coverage, all of one day.
    """
    taken: dict[str, dict[int, list[Span]]] = {}
    out: dict[str, Coverage | None] = {}
    for name, (log, coverage) in sorted(files.items(), key=lambda f: (-size(f[1][1]), f[0])):
        before = taken.get(log, {})
        own = minus(coverage, before)
        out[name] = None if own == union([coverage]) else own
        taken[log] = union([before, coverage])
    return out


def superseded(files: Mapping[str, tuple[str, Coverage]]) -> dict[str, str]:
    """File → one other file that has all of it: the first may go.

    By one other alone, and never each by the other: so nothing is lost where several delete by what they saw a while
    ago, since what has that other one has all of both.
    """
    out = {}
    for name in (name for name, part in resolve(files).items() if part == {}):
        log, coverage = files[name]
        for other, (other_log, other_coverage) in files.items():
            if other == name or other_log != log or minus(coverage, other_coverage):
                continue
            if minus(other_coverage, coverage) or other < name:
                out[name] = other
                break
    return out


def _joined(spans: Sequence[Span]) -> list[Span]:
    out: list[Span] = []
    for first, last in sorted(spans):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out
