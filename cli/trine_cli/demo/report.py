"""The HTML report of a demo run: one file, no scripts, nothing loaded from anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from model_release import Release

from trine_cli.demo import charts
from trine_cli.demo.charts import Band, Mark
from trine_cli.demo.night import prediction_text
from trine_cli.demo.outcome import Outcome
from trine_cli.demo.tally import DENY, MODEL, REVIEW

_PERCENTS = (50, 90, 99, 100)
_SCORES = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99)


def write_report(outcome: Outcome, release: Release, next_lines: Sequence[tuple[str, str]], out: Path) -> None:
    """`next_lines`: (what it does, what to type)."""
    environment = Environment(
        loader=PackageLoader("trine_cli.demo", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    scenario, tally = outcome.scenario, outcome.tally
    answered = int(outcome.answered.sum())
    page = environment.get_template("report.html.jinja").render(
        day=scenario.day.isoformat(),
        kept=all(p.kept for p in outcome.promises),
        lead=(
            f"{outcome.total:,} transactions of {scenario.day:%A, %d %B %Y} went through Trine on this machine at"
            f" {scenario.rate:,.0f} a second: features from Redis, scores from TorchServe, events through Kafka."
            " Half-way TorchServe was stopped."
        ),
        tiles=[
            (f"{answered / outcome.total:.2%}", f"answered within {scenario.deadline_s * 1_000:.0f} ms"),
            (f"{outcome.latency_ms(50):.1f} ms", "median latency"),
            (f"{outcome.latency_ms(99, outcome.outside):.1f} ms", "p99 latency, TorchServe up"),
            (f"{_share(float((tally.source[outcome.outside] == MODEL).mean()))}", "by the model, TorchServe up"),
            (_share(outcome.quality(DENY)[0]), "of the denied were fraud"),
            (f"{outcome.decisions.different:,}", f"of {outcome.decisions.decisions:,} decisions replayed differently"),
        ],
        promises=outcome.promises,
        charts=_charts(outcome, release),
        quality=_quality(outcome),
        truth=(
            f"{int(outcome.fraud.sum()):,} of the day's transactions were fraud by the latest report over all time."
            f" {outcome.reports:,} fraud reports came in during the day and changed terminals' features at once."
        ),
        percents=_PERCENTS,
        latency=_latency(outcome),
        nights=[
            (p.job, f"{p.rows:,}", f"{p.seconds:.1f}", p.key, prediction_text(p.prediction), p.run)
            for p in outcome.nights.published
        ],
        next=list(next_lines),
        made=_made(outcome, release),
    )
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, out)


def _charts(outcome: Outcome, release: Release) -> list[dict[str, str]]:
    seconds = outcome.seconds()
    away = outcome.outage
    band = [Band(away.stopped_s, away.back_s, "TorchServe away")] if away.back_s == away.back_s else []
    deadline = Mark(outcome.scenario.deadline_s * 1_000, "deadline")
    flagged = {name: v for name, v in seconds.by_verdict.items() if name != "approve"}
    approved = outcome.by_verdict["approve"]
    thresholds = release.manifest.thresholds
    return [
        {
            "title": "Latency",
            "svg": charts.lines({"p50": seconds.p50, "p99": seconds.p99}, "milliseconds", band, [deadline]),
            "about": "From sending to decision, by second of sending.",
        },
        {
            "title": "Who gave the score",
            "svg": charts.stacked(seconds.by_source, "decisions a second", band),
            "about": "While the model cannot answer, calibrated rules do, and the decision says so.",
        },
        {
            "title": "Reviewed and denied",
            "svg": charts.stacked(flagged, "decisions a second", band),
            "about": f"Decisions by second that were not an approval; {approved:,} of the day were approved.",
        },
        {
            "title": "Scores of the model",
            "svg": _scores(outcome, thresholds.review, thresholds.deny),
            "about": "Calibrated probability of fraud, on a scale that widens both ends; heights are powers of ten.",
        },
        {
            "title": "Feature lag",
            "svg": charts.lines({"p50": seconds.lag_p50, "p99": seconds.lag_p99}, "milliseconds", band),
            "about": "How far the worker trails a request. Requests see each other's events at once, whatever the lag.",
        },
    ]


def _scores(outcome: Outcome, review: float, deny: float) -> str:
    chosen = outcome.answered & (outcome.tally.source == MODEL)
    score = np.clip(outcome.tally.score[chosen].astype(np.float64), 1e-6, 1 - 1e-6)
    edges = np.linspace(_logit(1e-5), _logit(0.9999), 41)
    where = np.clip(np.log(score / (1 - score)), edges[0], edges[-1])
    fraud = outcome.fraud[chosen]
    series = {
        name: np.histogram(where[which], edges)[0].astype(np.float64)
        for name, which in (("genuine", ~fraud), ("fraud", fraud))
    }
    ticks = {_logit(p): f"{p:.0%}" if p >= 0.01 else f"{p * 100:g}%" for p in _SCORES}
    marks = [Mark(_logit(review), "review"), Mark(_logit(deny), "deny")]
    return charts.histogram(series, edges, ticks, "decisions", [m for m in marks if m.at < edges[-1]])


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return float(np.log(p / (1 - p)))


def _quality(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    rows = []
    for words, least in (("denied", DENY), ("denied or reviewed", REVIEW)):
        precision, recall = outcome.quality(least)
        flagged = int((outcome.tally.verdict >= least).sum())
        rows.append((words, f"{flagged:,}", _share(precision), _share(recall)))
    return rows


def _latency(outcome: Outcome) -> list[list[str]]:
    rows = [("all requests", None), ("TorchServe up", outcome.outside), ("TorchServe away", ~outcome.outside)]
    return [[words, *(f"{outcome.latency_ms(p, chosen):.1f}" for p in _PERCENTS)] for words, chosen in rows]


def _made(outcome: Outcome, release: Release) -> list[tuple[str, str]]:
    scenario, lag = outcome.scenario, outcome.decisions.lag_percentiles()
    reasons = " · ".join(f"{name} {count:,}" for name, count in sorted(outcome.tally.reasons.items()))
    steps = " · ".join(f"{step} {seconds:.1f} s" for step, seconds in outcome.timings.items())
    return [
        ("Data", f"{scenario.customers:,} customers, {scenario.terminals:,} terminals, {scenario.days} days from"
                 f" {scenario.start}, seed {scenario.seed}: the fraud handbook's published process"),
        ("Release", f"{release.id}; review from {release.manifest.thresholds.review:.4f}, deny from"
                    f" {release.manifest.thresholds.deny:.4f}"),
        ("Thresholds", release.manifest.threshold_basis),
        ("Sources", " · ".join(f"{name} {count:,}" for name, count in outcome.by_source.items())),
        ("Verdicts", " · ".join(f"{name} {count:,}" for name, count in outcome.by_verdict.items())),
        ("Without the model because", reasons or "-"),
        ("Feature lag of the records", " · ".join(f"{name} {ms:,} ms" for name, ms in lag.items())),
        ("Sent", f"{outcome.total:,} unary gRPC calls in {outcome.sent_for_s:.1f} s, each when it was due"),
        ("Steps", steps),
        ("Machine", f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python"
                    f" {platform.python_version()}; client and all servers on it"),
    ]  # fmt: skip


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
