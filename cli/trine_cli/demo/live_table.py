"""The day as it happens: a table drawn a few times a second on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from trine_cli.demo.day import Day, Sending
from trine_cli.demo.outage import OutageMaker
from trine_cli.demo.tally import ANSWERED, DENY, REVIEW, SOURCES, VERDICTS, quality

_DRAW_EVERY_S = 0.25
_LINE_EVERY_S = 5.0
_RECENT = 1_000


def watch(console: Console, day: Day, sending: Sending, outage: OutageMaker) -> None:
    """Show the day until every request is settled."""
    if not console.is_terminal:
        _print_lines(console, day, sending, outage)
        return
    with Live(
        console=console, refresh_per_second=1 / _DRAW_EVERY_S, get_renderable=lambda: _table(day, sending, outage)
    ):
        while not sending.finished:
            time.sleep(_DRAW_EVERY_S)


def _print_lines(console: Console, day: Day, sending: Sending, outage: OutageMaker) -> None:
    next_line = time.monotonic() + _LINE_EVERY_S
    while not sending.finished:
        time.sleep(_DRAW_EVERY_S)
        if time.monotonic() >= next_line:
            next_line += _LINE_EVERY_S
            words = [f"{name} {value}" for name, value in _facts(day, sending, outage)]
            console.print("  " + " · ".join(words[:1] + words[3:6]), highlight=False, soft_wrap=True)


def _table(day: Day, sending: Sending, outage: OutageMaker) -> Table:
    table = Table(title="The day, as it happens", title_justify="left", show_header=False, min_width=76)
    table.add_column(style="dim")
    table.add_column()
    for name, value in _facts(day, sending, outage):
        table.add_row(name, value)
    return table


def _facts(day: Day, sending: Sending, outage: OutageMaker) -> list[tuple[str, str]]:
    tally, total = sending.tally, day.total
    done = tally.done
    answered = tally.state == ANSWERED
    recent = np.flatnonzero(answered)[-_RECENT:]
    latency, lag = tally.latency_ms[recent], tally.lag_ms[recent]
    elapsed = sending.now_s
    rate = sending.settled / elapsed if elapsed > 0 else 0.0
    missed = int((done & ~answered).sum())
    return [
        ("sent", f"{sending.settled:,} of {total:,} ({sending.settled / total:.0%}) at {rate:,.0f} a second"),
        ("decisions", _counts(tally.verdict[answered], dict(VERDICTS.items()))),
        ("flagged", f"{_quality(tally.verdict[answered], day.fraud[answered], REVIEW)} (denied or sent to review)"),
        ("by", _counts(tally.source[answered], dict(SOURCES.items()))),
        ("latency", _percentiles(latency, "ms")),
        ("feature lag", _percentiles(lag, "ms")),
        ("not in time", f"{missed:,}" + (f" {tally.errors}" if missed else "")),
        ("denied", _quality(tally.verdict[answered], day.fraud[answered], DENY)),
        ("fraud reports", f"{sending.reports_sent:,} of {len(day.traffic.reports):,}"),
        ("TorchServe", outage.words),
    ]


def _counts(numbers: np.ndarray, names: dict[int, str]) -> str:
    counts = {name: int((numbers == number).sum()) for number, name in names.items()}
    return " · ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none yet"


def _quality(verdict: np.ndarray, fraud: np.ndarray, least: int) -> str:
    precision, recall = quality(verdict, fraud, least)
    return f"precision {_share(precision)} · recall {_share(recall)}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _percentiles(values: np.ndarray, unit: str) -> str:
    if not len(values):
        return "none yet"
    p50, p99 = np.percentile(values, (50, 99))
    return f"p50 {p50:,.1f} {unit} · p99 {p99:,.1f} {unit} (last {len(values):,})"
