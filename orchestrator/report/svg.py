"""Curves and stacked bars as inline SVG text. Numbers flow in, markup flows out; no script, no outside resource.

Called by `orchestrator.report.page`; the colours are in `orchestrator.report.style`. All text is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.formats import printable

WIDTH, HEIGHT = 400, 204
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 14, 22
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_HOVERS = 160
"""At most so many columns answer to the pointer; the curve itself has every step."""
_BARS = 80
"""At most so many bars; each is then the mean of several steps."""

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: a value (NaN: not a number) at each of some steps, ascending."""

    name: str
    steps: list[int]
    values: list[float]
    errors: list[float] | None = None
    """Half the height of an error bar at each step."""


@dataclass(frozen=True, slots=True)
class Band:
    """A named range of values, drawn as a coloured background."""

    name: str
    low: float
    high: float
    style: str
    """CSS class."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn and how."""

    title: str
    series: list[Series]
    show: Format
    low: float | None = None
    """Lowest value on the axis (where it is 0 the axis starts there); what lies below is drawn on the edge, and the
    tooltip tells the true value."""
    reach: tuple[float, ...] = ()
    """Values that the axis must reach."""
    logarithmic: bool = False
    bands: Sequence[Band] = field(default_factory=tuple)
    target: float | None = None


def escape(text: str) -> str:
    """Text for HTML content and attributes; what could drive the page or its text direction is replaced."""
    return html.escape(printable(text, keep="\n\t"))


def line_chart(chart: Drawing) -> str:
    """The SVG of one or more curves over the steps; empty if none of them has a finite value."""
    finite = [v for s in chart.series for v in s.values if math.isfinite(v) and (v > 0 or not chart.logarithmic)]
    steps = sorted({step for s in chart.series for step in s.steps})
    if not finite:
        return ""
    axis = _Axis.over(chart, finite)
    place = _Steps(steps[0], steps[-1])
    parts = [_bands(chart, axis, place), _grid(axis, chart.show), _step_axis(place)]
    if chart.target is not None and axis.low <= chart.target <= axis.high:
        y = axis.y(chart.target)
        parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT + 6, y - 4, f"target {chart.show(chart.target)}", "note", "start"))
    parts += [_curve(series, number, axis, place) for number, series in enumerate(chart.series)]
    parts += [_missing(series, place) for series in chart.series]
    parts.append(_hovers(chart, steps, axis, place))
    return _svg(chart.title, _summary(chart), "".join(parts))


def stacked_bars(title: str, steps: Sequence[int], layers: Sequence[Series], show: Format) -> str:
    """The SVG of one bar a step with a segment for each layer; a NaN counts as 0. Empty without steps."""
    if not steps:
        return ""
    groups = _groups(len(steps), _BARS)
    heights = [[_mean(layer.values[a:b]) for layer in layers] for a, b in groups]
    top = max(sum(bar) for bar in heights)
    axis = _Axis(0.0, top * 1.05 if top > 0 else 1.0, False)
    slot = _PLOT_WIDTH / len(groups)
    gap = min(slot * 0.2, 2.0)
    parts = [_grid(axis, show)]
    for place, ((first, end), bar) in enumerate(zip(groups, heights, strict=True)):
        x, base = LEFT + place * slot + gap / 2, 0.0
        name = f"step {steps[first]}" if end - first == 1 else f"steps {steps[first]}-{steps[end - 1]}, mean"
        rows = "\n".join(f"{layer.name} {show(v)}" for layer, v in zip(layers, bar, strict=True) if v > 0)
        parts.append(f'<g class="bar"><title>{escape(f"{name}: {show(sum(bar))}")}\n{escape(rows)}</title>')
        parts.append(f'<rect class="hit" x="{x:.1f}" y="{TOP}" width="{slot - gap:.1f}" height="{_PLOT_HEIGHT}"/>')
        for number, value in enumerate(bar):
            y, below = axis.y(base + value), axis.y(base)
            base += value
            if below - y >= 0.05:
                place_and_width = f'x="{x:.1f}" width="{slot - gap:.1f}"'
                parts.append(f'<rect class="p{number}" {place_and_width} y="{y:.1f}" height="{below - y:.1f}"/>')
        parts.append("</g>")
    centre = _Steps(steps[0], steps[-1], inset=slot / 2)
    summary = f"{len(steps)} steps; " + ", ".join(f"{s.name} {show(_mean(s.values))} on average" for s in layers)
    return _svg(title, summary, "".join([*parts, _step_axis(centre)]))


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def over(cls, chart: Drawing, finite: list[float]) -> _Axis:
        low, high = min(finite), max(finite)
        for series in chart.series:
            for value, error in zip(series.values, series.errors or [], strict=False):
                if math.isfinite(value + error):
                    low, high = min(low, value - error), max(high, value + error)
        if chart.logarithmic:
            decades = math.floor(math.log10(low)), math.ceil(math.log10(high))
            return cls(10.0 ** decades[0], 10.0 ** max(decades[1], decades[0] + 1), True)
        low, high = min([low, *chart.reach]), max([high, *chart.reach])
        if chart.low is not None:
            low = max(low, chart.low) if chart.low < 0 else chart.low
            high = max(high, low)
        pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low if low == chart.low else low - pad, high + pad, False)

    def y(self, value: float) -> float:
        low, high, value = (self._scale(v) for v in (self.low, self.high, min(max(value, self.low), self.high)))
        return TOP + _PLOT_HEIGHT * (1 - (value - low) / (high - low))

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            every = max(1, math.ceil((last - first) / 5))
            return [10.0**power for power in range(first, last + 1, every)]
        return nice_ticks(self.low, self.high, 5)


@dataclass(frozen=True, slots=True)
class _Steps:
    first: int
    last: int
    inset: float = 6.0

    def x(self, step: float) -> float:
        if self.last == self.first:
            return LEFT + _PLOT_WIDTH / 2
        return LEFT + self.inset + (_PLOT_WIDTH - 2 * self.inset) * (step - self.first) / (self.last - self.first)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within `low`..`high`, at most `most` + 1 of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    every = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / every - 1e-9)
    last = math.floor(high / every + 1e-9)
    return [n * every for n in range(first, last + 1)]


def _svg(title: str, summary: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(summary)}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(axis: _Axis, show: Format) -> str:
    parts = []
    for tick in axis.ticks():
        y = axis.y(tick)
        style = "zero" if tick == 0 and axis.low < 0 else "grid"
        parts.append(f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, show(tick), "tick", "end"))
    return "".join(parts)


def _step_axis(place: _Steps) -> str:
    if place.last == place.first:
        ticks = [float(place.first)]
    else:
        ticks = [tick for tick in nice_ticks(place.first, place.last, 6) if tick == int(tick)]
    parts = [_text(place.x(tick), HEIGHT - BOTTOM + 17, f"{tick:.0f}", "tick", "middle") for tick in ticks]
    return "".join([_text(LEFT - 6, HEIGHT - BOTTOM + 17, "step", "tick", "end"), *parts])


def _bands(chart: Drawing, axis: _Axis, place: _Steps) -> str:
    points = [(place.x(x), axis.y(y)) for s in chart.series for x, y in zip(s.steps, s.values, strict=True) if y == y]
    parts = []
    for band in chart.bands:
        if band.low >= axis.high or band.high <= axis.low:
            continue
        top, bottom = axis.y(min(band.high, axis.high)), axis.y(max(band.low, axis.low))
        parts.append(
            f'<rect class="{band.style}" x="{LEFT}" y="{top:.1f}" width="{_PLOT_WIDTH}" height="{bottom - top:.1f}"/>'
        )
        if bottom - top >= 12:
            y = min(bottom - 3, top + 13)
            near = [x for x, curve_y in points if y - 18 < curve_y < y + 8]
            on_left, on_right = sum(x < LEFT + 90 for x in near), sum(x > WIDTH - RIGHT - 90 for x in near)
            leftward = on_left < on_right or (on_left == on_right and math.isfinite(band.low))
            x, anchor = (LEFT + 6, "start") if leftward else (WIDTH - RIGHT - 6, "end")
            parts.append(_text(x, y, band.name, f"{band.style}-name", anchor))
    return "".join(parts)


def _curve(series: Series, number: int, axis: _Axis, place: _Steps) -> str:
    path, marks, pen_down = [], [], False
    dotted = len(series.steps) <= 30
    for at, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
        if not math.isfinite(value):
            pen_down = False
            continue
        x, y = place.x(step), axis.y(value)
        path.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        alone = not pen_down and (at + 1 == len(series.values) or not math.isfinite(series.values[at + 1]))
        if dotted or alone:
            marks.append(f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>')
        error = series.errors[at] if series.errors else math.nan
        if math.isfinite(error):
            y1, y2 = axis.y(value - error), axis.y(value + error)
            marks.append(f'<line class="error s{number}" x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
        pen_down = True
    style = "curve dense" if len(series.steps) > 120 else "curve"
    return f'<path class="{style} s{number}" d="{"".join(path)}"/>{"".join(marks)}'


def _missing(series: Series, place: _Steps) -> str:
    """A red mark on the step axis for every value that is not a number."""
    y = HEIGHT - BOTTOM
    marks = []
    for step, value in zip(series.steps, series.values, strict=True):
        if not math.isfinite(value):
            x = place.x(step)
            title = escape(f"step {step}: {series.name} is not a number")
            marks.append(f'<path class="nan" d="M{x - 4:.1f} {y}h8l-4 -8z"><title>{title}</title></path>')
    return "".join(marks)


def _hovers(chart: Drawing, steps: list[int], axis: _Axis, place: _Steps) -> str:
    """Invisible columns: under the pointer each shows a line, the points and their values."""
    lookup = [dict(zip(s.steps, s.values, strict=True)) for s in chart.series]
    shown = steps[:: math.ceil(len(steps) / _HOVERS)]
    half = _PLOT_WIDTH / len(shown) / 2
    parts = []
    for step in shown:
        x = place.x(step)
        here = [(n, s.name, v[step]) for n, (s, v) in enumerate(zip(chart.series, lookup, strict=True)) if step in v]
        values = [f"{name} {chart.show(value)}" for _, name, value in here]
        dots = "".join(
            f'<circle class="s{n}" cx="{x:.1f}" cy="{axis.y(v):.1f}" r="4"/>' for n, _, v in here if math.isfinite(v)
        )
        left, right = max(x - half, LEFT), min(x + half, WIDTH - RIGHT)
        parts.append(
            f'<g class="over"><title>{escape(chr(10).join([f"step {step}", *values]))}</title>'
            f'<rect class="hit" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{_PLOT_HEIGHT}"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{dots}'
            + _text(
                WIDTH - RIGHT,
                TOP - 2,
                f"step {step}: " + " · ".join(chart.show(value) for *_, value in here),
                "readout",
                "end",
            )
            + "</g>"
        )
    return "".join(parts)


def _summary(chart: Drawing) -> str:
    """What a screen reader says instead of the curve."""
    parts = []
    for series in chart.series:
        finite = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v)]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            low, high = min(v for _, v in finite), max(v for _, v in finite)
            parts.append(
                f"{series.name} from {chart.show(start)} at step {first} to {chart.show(end)} at step {last}, "
                f"between {chart.show(low)} and {chart.show(high)}"
            )
    return "; ".join(parts)


def _groups(count: int, most: int) -> list[tuple[int, int]]:
    size = math.ceil(count / most)
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(values) if finite else 0.0
