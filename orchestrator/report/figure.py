"""Curves and stacked bars as figures for Plotly: numbers flow in, Plotly's `data` and `layout` flow out. Pure.

A colour is the name of a variable of `colours.css`, such as `--c0`; the page's script inserts the theme's colour.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.counts import counted
from orchestrator.display_text import number
from orchestrator.metric_types import Chart
from orchestrator.report.curve_points import Line, thinned
from orchestrator.report.evaluation_results import wilson_interval
from orchestrator.report.reliability import ReliabilityBin
from orchestrator.report.run_files import finite

_DOTTED = 30
"""Most steps for which each value has a dot."""
_DASHED = 120
"""Most steps for which the second curve is dashed."""
_BARS = 80
"""Most steps for which each has a bar; more are drawn as areas."""
_HEIGHT, _LEGEND_ROW = 212, 19
"""Height of a chart without a legend, and of a row of a legend, in pixels."""
_BINS, _DISTINCT = 24, 12
"""Bars of a histogram; so few different values have a bar each."""
_COLOURS = 7
"""Of curves, in `colours.css`."""
_LABELLED = 0.1
"""Share of the chart's height that a band needs to show its name."""


@dataclass(frozen=True, slots=True)
class Band:
    """A named range of values, drawn as a coloured background. Example: `Band("healthy 2-6", 2.0, 6.0, "healthy")`."""

    name: str
    low: float
    high: float
    colour: str
    """Prefix of the band's variables in `colours.css`: `--COLOUR-band` and `--COLOUR-name`."""


def curves(
    chart: Chart, lines: Sequence[Line], show: Callable[[float], str], bands: Sequence[Band], targets: Sequence[float]
) -> dict[str, Any] | None:
    """Curves over the steps; None if no value can be drawn.

    Args:
        show: a value as text.
        targets: values marked by a dashed line.
    """
    drawn = [v for line in lines for v in line.values if math.isfinite(v) and (v > 0 or not chart.logarithmic)]
    if not drawn:
        return None
    several, lines = len(lines) > 1, thinned(lines)
    data = [
        _curve(line, n, f"{line.name} <b>{show(line.values[-1])}</b>" if several else line.name)
        for n, line in enumerate(lines)
    ]
    reach = [*chart.reach, *targets]
    axis: dict[str, Any] = {"type": "log" if chart.logarithmic else "linear"}
    if chart.logarithmic:
        decades = math.log10(max(drawn) / min(drawn))
        axis |= {"dtick": math.ceil(decades / 5) if decades >= 1 else "D2"}
    else:
        axis |= {"rangemode": "tozero" if chart.low == 0 else "normal", "autorangeoptions": {"include": reach}}
        if chart.low is not None and chart.low < 0:
            axis["autorangeoptions"]["clipmin"] = chart.low
    if show(0.5).endswith("%"):
        axis |= {"tickformat": "~%", "hoverformat": ".3~p"}
    shapes = _bands(bands, lines, min([*drawn, *reach]), max([*drawn, *reach])) if bands else []
    shapes += [_target(value, show) for value in targets]
    layout = {
        "xaxis": _steps(lines),
        "yaxis": axis,
        "shapes": shapes,
        "annotations": _missing(lines),
        **_legend(lines if several else []),
    }
    return finite({"data": data, "layout": layout})


def stacked(lines: Sequence[Line], legend: Sequence[str]) -> dict[str, Any]:
    """The values of each step on top of each other; values that are not finite are left out."""
    lines = thinned(lines)
    bars = max(len(line.points) for line in lines) <= _BARS
    data = []
    for n, (line, name) in enumerate(zip(lines, legend, strict=True)):
        colour = f"--c{n}"
        how = {"type": "bar", "marker": {"color": colour}}
        if not bars:
            how = {"type": "scatter", "mode": "none", "stackgroup": "all", "fillcolor": colour}
        data.append({**how, "name": name, "hovertemplate": _hover(line), "x": line.steps, "y": _rounded(line.values)})
    return finite(
        {"data": data, "layout": {"xaxis": _steps(lines), "barmode": "stack", "bargap": 0.15, **_legend(lines)}}
    )


def histogram(named: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Shares of the values in equal bins, of several sets over each other; None if no value can be drawn."""
    sets = {name: [value for value in values if math.isfinite(value)] for name, values in named.items()}
    every = {value for values in sets.values() for value in values}
    if not every:
        return None
    low, high = min(every), max(every)
    distinct = sorted(every) if len(every) <= _DISTINCT else []
    width = (high - low) / _BINS or 1.0
    data = []
    for n, (name, values) in enumerate(sets.items()):
        where = Counter(value if distinct else min(int((value - low) / width), _BINS - 1) for value in values)
        places = distinct or list(range(_BINS))
        centres = distinct or [low + (place + 0.5) * width for place in places]
        shares = [where[place] / len(values) if values else 0.0 for place in places]
        mean = math.fsum(values) / len(values) if values else math.nan
        data.append(
            {
                "type": "bar", "name": f"{name} (mean {number(mean)})",
                "x": _rounded(centres), "y": _rounded(shares),
                "marker": {"color": f"--c{n}"}, "opacity": 0.65, "hovertemplate": "%{y}<extra>" + name + "</extra>",
            }
        )  # fmt: skip
    layout = {
        "xaxis": {
            "title": {"text": "score", "standoff": 2, "font": {"size": 11}},
            "unifiedhovertitle": {"text": "%{x}"},
        },
        "yaxis": {"tickformat": "~%", "hoverformat": ".3~p"},
        "barmode": "overlay",
        "bargap": 0.08,
        **_legend([Line(str(trace["name"]), []) for trace in data]),
    }
    return finite({"data": data, "layout": layout})


def reliability_figure(curve: Sequence[ReliabilityBin]) -> dict[str, Any]:
    """Accuracy over confidence, with Wilson's intervals, and the line on which both are equal."""
    ends = [(one, wilson_interval(one.accuracy, one.pairs)) for one in curve]
    lowest = min(0.5, *(low for _, (low, _) in ends))
    bars = {
        "array": _rounded([high - one.accuracy for one, (_, high) in ends]),
        "arrayminus": _rounded([one.accuracy - low for one, (low, _) in ends]),
    }
    measured = {
        "type": "scatter", "mode": "lines+markers", "name": "held-out pairs",
        "x": _rounded([one.confidence for one in curve]), "y": _rounded([one.accuracy for one in curve]),
        "text": [counted(one.pairs, "pair") for one in curve],
        "line": {"color": "--c0", "width": 2}, "marker": {"size": 7},
        "error_y": {**bars, "symmetric": False, "color": "--c0", "thickness": 1.5, "width": 0},
        "hovertemplate": "%{x} sure, %{y} right, %{text}<extra></extra>",
    }  # fmt: skip
    right = {
        "type": "scatter", "mode": "lines", "name": "as sure as right", "x": [0.5, 1], "y": [0.5, 1],
        "line": {"color": "--soft", "width": 1, "dash": "6px 3px"}, "hoverinfo": "skip",
    }  # fmt: skip
    shares = {"tickformat": "~%", "hoverformat": ".3~p"}
    layout = {
        "xaxis": {
            "title": {"text": "confidence", "standoff": 2, "font": {"size": 11}},
            "range": [0.49, 1.01],
            **shares,
        },
        "yaxis": {"range": [lowest - 0.05, 1.02], **shares},
        "hovermode": "closest",
        **_legend([Line(str(trace["name"]), []) for trace in (measured, right)]),
    }
    return {"data": [right, measured], "layout": layout}


def _curve(line: Line, n: int, name: str) -> dict[str, Any]:
    n = n if line.place is None else line.place
    colour, values = f"--c{n % _COLOURS}", line.values
    known = [math.isfinite(value) for value in values]
    alone = [
        here and not before and not after
        for before, here, after in zip([False, *known], known, [*known[1:], False], strict=False)
    ]
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": name,
        "x": line.steps,
        "y": _rounded(values),
        "mode": "lines",
        "hovertemplate": _hover(line),
        "line": {"color": colour, "width": 2 if len(values) <= _DASHED else 1.2},
    }
    if n % 2 and len(values) <= _DASHED:
        trace["line"]["dash"] = "6px 3px"
    if len(values) <= _DOTTED or any(alone):
        sizes = 5 if len(values) <= _DOTTED else [5 if single else 0 for single in alone]
        trace |= {"mode": "lines+markers", "marker": {"color": colour, "size": sizes}}
    if line.errors:
        trace["error_y"] = {"array": _rounded(line.errors), "color": colour, "thickness": 1.5, "width": 0}
    return trace


def _steps(lines: Sequence[Line]) -> dict[str, Any]:
    """The ticks of the step axis, with all digits: for few steps one for each and none between them."""
    steps = {step for line in lines for step in line.steps}
    whole = {"tickformat": ",d", "hoverformat": ",d"}
    return {"dtick": 1, **whole} if max(steps) - min(steps) <= 8 else whole


def _legend(lines: Sequence[Line]) -> dict[str, Any]:
    """Layout of the legend; several short names share a row."""
    columns = 2 if all(len(line.name) <= 14 for line in lines) else 1
    return {"showlegend": bool(lines), "height": _HEIGHT + _LEGEND_ROW * math.ceil(len(lines) / columns)}


def _hover(line: Line) -> str:
    return f"{line.name} %{{y}}<extra></extra>"


def _rounded(values: Sequence[float]) -> list[float]:
    """The values rounded to six digits: more cannot be seen, and would double the size of the page."""
    return [float(f"{value:.6g}") for value in values]


def _bands(bands: Sequence[Band], lines: Sequence[Line], low: float, high: float) -> list[dict[str, Any]]:
    """The parts of the bands between the lowest and the highest value."""
    shapes = []
    for band in bands:
        bottom, top = max(band.low, low), min(band.high, high)
        if bottom >= top:
            continue
        shape = {
            "type": "rect", "layer": "between", "xref": "paper", "x0": 0, "x1": 1, "y0": bottom, "y1": top,
            "fillcolor": f"--{band.colour}-band", "line": {"width": 0},
        }  # fmt: skip
        if top - bottom >= _LABELLED * (high - low):
            side = "right" if _crossed_early(lines, bottom, top) else "left"
            font = {"color": f"--{band.colour}-name", "size": 11}
            shape["label"] = {"text": band.name.replace("<", "&lt;"), "textposition": f"top {side}", "font": font}
        shapes.append(shape)
    return shapes


def _crossed_early(lines: Sequence[Line], low: float, high: float) -> bool:
    """Whether the curves cross the range rather in the first half of the steps (at its top, if ever there)."""
    early = [(at < len(line.points) / 2, v) for line in lines for at, v in enumerate(line.values) if low <= v <= high]
    near = [first for first, v in early if v >= high - (high - low) / 3] or [first for first, _ in early]
    return 2 * sum(near) > len(near)


def _target(value: float, show: Callable[[float], str]) -> dict[str, Any]:
    label = {
        "text": f"target {show(value)}",
        "textposition": "start",
        "xanchor": "left",
        "yanchor": "bottom",
        "font": {"size": 11},
    }
    line = {"color": "--text", "dash": "5px 4px", "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line, "label": label}


def _missing(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A mark on the step axis for every value that is not finite."""
    return [
        {
            "text": "▲", "hovertext": f"step {step}: {line.name} is not a number", "showarrow": False,
            "x": step, "y": 0, "yref": "paper", "yanchor": "bottom", "font": {"color": "--bad", "size": 10},
        }
        for line in lines for step, value in line.points if not math.isfinite(value)
    ]  # fmt: skip
