"""The one-page report of a run: self-contained HTML, made from its manifest and the one of the run before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from batch_scorer.distributions import lower_edge
from batch_scorer.history import Manifest, OutputSummary
from batch_scorer.progress import STAGES

_WIDTH, _BARS = 560, 40


@dataclass(frozen=True, slots=True)
class StageBar:
    """One stage: where its bar begins and how long it is, in SVG units."""

    name: str
    seconds: float
    rows: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """One output's distribution, and the last run's over the same bins; heights 0 to 1."""

    output: str
    now: list[float]
    before: list[float]
    edges: list[float]


def report_page(manifest: Manifest, last: Manifest | None) -> str:
    """The page's text."""
    environment = Environment(
        loader=PackageLoader("batch_scorer", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("run_report.html.jinja")
    return template.render(
        manifest=manifest, last=last, stages=stage_bars(manifest), histograms=histograms(manifest, last), width=_WIDTH
    )


def stage_bars(manifest: Manifest) -> list[StageBar]:
    """The stages one after the other, to scale."""
    total = sum(manifest.seconds.values()) or 1.0
    bars, at = [], 0.0
    for name in (name for name in STAGES if name in manifest.seconds):
        seconds = manifest.seconds[name]
        width = seconds / total * _WIDTH
        bars.append(StageBar(name, seconds, manifest.stage_rows.get(name, 0), at, max(width, 1.0)))
        at += width
    return bars


def histograms(manifest: Manifest, last: Manifest | None) -> list[Histogram]:
    """Of every output that has numbers."""
    out = []
    for name, output in manifest.outputs.items():
        if not output.bins or output.least is None or output.greatest is None:
            continue
        edges = np.linspace(output.least, max(output.greatest, np.nextafter(output.least, np.inf)), _BARS + 1)
        before = last.outputs.get(name) if last is not None else None
        now = _heights(output, edges)
        out.append(Histogram(name, now, [] if before is None else _heights(before, edges), edges.tolist()))
    return out


def _heights(output: OutputSummary, edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """Coarse bins spread over even ones; each shown as its square root, so that small ones can be seen."""
    counts = np.zeros(_BARS)
    for code, count in output.bins.items():
        low, high = lower_edge(code), lower_edge(code + 1)
        inside = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0.0, None)
        if inside.sum() > 0:
            counts += count * inside / inside.sum()
        else:
            counts[int(np.clip(np.searchsorted(edges, low) - 1, 0, _BARS - 1))] += count
    share = np.sqrt(counts / max(counts.sum(), 1.0))
    return [round(float(height), 4) for height in share / max(share.max(), 1e-12)]
