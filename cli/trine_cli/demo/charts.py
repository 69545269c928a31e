"""Charts as inline SVG without scripts: colours come from the page's CSS, so one chart serves light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis that is shaded, and its name."""

    start: float
    end: float
    name: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A straight line across the chart at a value, and its name."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class _Axes:
    x_from: float
    x_to: float
    y_to: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_from) / (self.x_to - self.x_from) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - min(value, self.y_to) / self.y_to * (HEIGHT - _TOP - _BOTTOM)


def lines(series: Mapping[str, Values], unit: str, bands: Sequence[Band] = (), marks: Sequence[Mark] = ()) -> str:
    """Lines over seconds, one a series; a gap where a value is NaN. `unit`: what the y axis counts."""
    length = max(len(v) for v in series.values())
    top = max([float(np.nanmax(v)) for v in series.values() if np.isfinite(v).any()] + [m.at for m in marks] + [1e-9])
    axes = _Axes(0, max(length - 1, 1), _round_up(top * 1.05))
    parts = [*_bands(axes, bands), *_y_axis(axes), *_seconds(axes), *(_across(axes, m) for m in marks)]
    for name, values in series.items():
        drawing, path = False, ""
        for i, value in enumerate(values.tolist()):
            if value == value:
                path += f"{'L' if drawing else 'M'}{axes.x(i):.1f} {axes.y(value):.1f}"
            drawing = value == value
        parts.append(f'<path class="line {_class(name)}" d="{path}"/>')
    return _figure(parts, series, unit)


def stacked(series: Mapping[str, Values], unit: str, bands: Sequence[Band] = ()) -> str:
    """Bars over seconds, stacked in the order of the series."""
    length = max((len(v) for v in series.values()), default=1)
    total = sum(series.values(), np.zeros(length))
    axes = _Axes(0, length, _round_up(float(total.max()) if len(total) else 1.0))
    parts = [*_bands(axes, bands), *_y_axis(axes), *_seconds(axes)]
    below = np.zeros(length)
    for name, values in series.items():
        for i in np.flatnonzero(values).tolist():
            parts.append(
                _bar(name, axes.x(i) + 0.5, axes.x(i + 1) - 0.5, axes.y(below[i] + values[i]), axes.y(below[i]),
                     f"second {i}: {name} {values[i]:,.0f}")
            )  # fmt: skip
        below = below + values
    return _figure(parts, series, unit)


def histogram(
    series: Mapping[str, Values], edges: Values, ticks: Mapping[float, str], unit: str, marks: Sequence[Mark] = ()
) -> str:
    """Counts by bin, a bar beside a bar for each series, on a scale of powers of ten; `marks` stand upright."""
    top = max(float(v.max()) for v in series.values())
    axes = _Axes(float(edges[0]), float(edges[-1]), max(1.0, np.ceil(np.log10(max(top, 1.0)) * 4) / 4 + 0.15))
    parts = [_y_tick(axes, p + 0.15, f"{10**p:,}") for p in range(int(axes.y_to) + 1)]
    parts += [
        f'<text class="tick" x="{axes.x(at):.1f}" y="{HEIGHT - 10}">{escape(t)}</text>' for at, t in ticks.items()
    ]
    for k, (name, values) in enumerate(series.items()):
        for i in np.flatnonzero(values).tolist():
            left, right = axes.x(float(edges[i])), axes.x(float(edges[i + 1]))
            step = (right - left - 1) / len(series)
            height = float(np.log10(values[i])) + 0.15
            parts.append(_bar(name, left + k * step, left + (k + 1) * step, axes.y(height), axes.y(0),
                              f"{name}: {values[i]:,.0f}"))  # fmt: skip
    for k, m in enumerate(marks):
        x = axes.x(m.at)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="note" x="{x + 4:.1f}" y="{_TOP + 10 + 13 * k}">{escape(m.name)}</text>')
    return _figure(parts, series, unit)


def _figure(parts: Sequence[str], names: Mapping[str, object], unit: str) -> str:
    keys = "".join(f'<span class="key {_class(n)}">{escape(n)}</span>' for n in names)
    keys += f'<span class="unit">{escape(unit)}</span>'
    body = "".join(parts)
    return f'<div class="keys">{keys}</div><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{body}</svg>'


def _bar(name: str, left: float, right: float, top: float, bottom: float, words: str) -> str:
    size = f'x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.6):.1f}" height="{max(bottom - top, 0.5):.1f}"'
    return f'<rect class="bar {_class(name)}" {size}><title>{escape(words)}</title></rect>'


def _bands(axes: _Axes, bands: Sequence[Band]) -> list[str]:
    parts = []
    for band in bands:
        left, right = axes.x(max(band.start, axes.x_from)), axes.x(min(band.end, axes.x_to))
        parts.append(f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
                     f'height="{HEIGHT - _TOP - _BOTTOM}"/>')  # fmt: skip
        parts.append(f'<text class="note" x="{left + 4:.1f}" y="{_TOP + 11}">{escape(band.name)}</text>')
    return parts


def _across(axes: _Axes, mark: Mark) -> str:
    y = axes.y(mark.at)
    return (
        f'<line class="mark" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="note end" x="{WIDTH - _RIGHT}" y="{y - 4:.1f}">{escape(mark.name)}</text>'
    )


def _y_axis(axes: _Axes) -> list[str]:
    step = _step(axes.y_to)
    values = np.arange(0, axes.y_to * 1.0001, step).tolist()
    return [_y_tick(axes, v, f"{v:,g}") for v in values]


def _y_tick(axes: _Axes, value: float, words: str) -> str:
    y = axes.y(value)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick end" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{escape(words)}</text>'
    )


def _seconds(axes: _Axes) -> list[str]:
    step = _step(axes.x_to)
    values = np.arange(0, axes.x_to * 1.0001, step).tolist()
    return [f'<text class="tick" x="{axes.x(v):.1f}" y="{HEIGHT - 10}">{v:,g} s</text>' for v in values]


def _round_up(value: float) -> float:
    step = _step(value)
    return float(np.ceil(value / step - 1e-9) * step)


def _step(span: float) -> float:
    """A round number that divides a span into three to seven parts."""
    if span <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(span / 4))
    return float(next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 7))


def _class(name: str) -> str:
    return "c-" + "".join(ch if ch.isalnum() else "-" for ch in name.lower())
