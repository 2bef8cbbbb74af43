"""The cards of `report.html` that hold a curve. A run's metrics and evaluations flow in, markup flows out.

Which charts there are follows from the metrics that the run has: `orchestrator.metrics` says where each is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from orchestrator.formats import number, percent
from orchestrator.metric_types import Chart, Metric
from orchestrator.metrics import METRICS
from orchestrator.report.files import RunRecord
from orchestrator.report.results import Estimate, EvaluationResult
from orchestrator.report.svg import Band, Drawing, Series, escape, line_chart, stacked_bars

_COLOURED = {"close", "healthy", "far", "collapse"}
"""Bands that have a colour (a CSS class of their name); those between them have none."""


def training_curves(record: RunRecord) -> str:
    """The section of the curves over the training steps; empty without steps."""
    cards = [
        (_phase_card if chart.stacked else _curve_card)(chart, metrics, record)
        for chart, metrics in _charts(record.metrics).items()
    ]
    shown = "".join(card for card in cards if card)
    return f'<section>\n<h2>Training</h2>\n<div class="charts">{shown}</div>\n</section>' if shown else ""


def _charts(steps: list[dict[str, float]]) -> dict[Chart, list[Metric]]:
    """The charts of the metrics that a run has, and the metrics of each, in the order of their declarations."""
    present = {key for step in steps for key in step}
    charts: dict[Chart, list[Metric]] = {}
    for key, metric in METRICS.items():
        if metric.chart is not None and key in present:
            charts.setdefault(metric.chart, []).append(metric)
    return charts


def _curve_card(curve: Chart, metrics: list[Metric], record: RunRecord) -> str:
    lines = []
    for metric in metrics:
        points = [(int(m["step"]), m[metric.key]) for m in record.metrics if metric.key in m]
        lines.append(Series(metric.label or metric.key, [step for step, _ in points], [value for _, value in points]))
    first = metrics[0]
    show = percent if first.unit == "fraction" else number
    target = next((record.state.targets[m.key] for m in metrics if m.key in record.state.targets), None)
    reach = curve.reach if target is None else (*curve.reach, target)
    bands = _bands(first)
    drawn = Drawing(curve.title, lines, show, curve.low, reach, curve.logarithmic, bands=bands, target=target)
    drawing = line_chart(drawn) or '<p class="about">No finite value was recorded.</p>'
    legend = "" if len(lines) == 1 else _legend([(s.name, show(s.values[-1])) for s in lines], "")
    latest = _with_unit(lines[0].values[-1], first.unit, show) if len(lines) == 1 else ""
    about = " ".join(_about(metric, len(lines) > 1) for metric in metrics)
    bad = sorted({step for s in lines for step, v in zip(s.steps, s.values, strict=True) if not math.isfinite(v)})
    if bands:
        about += f" Bands: {', '.join(band.name for band in bands)}."
    if bad:
        about += f" Not a number at step {', '.join(map(str, bad[:8]))}{' and others' if len(bad) > 8 else ''}."
    return _card(curve.title, latest, drawing, legend, about)


def _about(metric: Metric, named: bool) -> str:
    text = metric.description
    return f"{metric.label or metric.key}: {text[0].lower()}{text[1:]}." if named else f"{text}."


def _with_unit(value: float, unit: str, show: Callable[[float], str]) -> str:
    return show(value) if unit in ("", "fraction") else f"{show(value)} {unit}"


def _phase_card(chart: Chart, phases: list[Metric], record: RunRecord) -> str:
    metrics = record.metrics
    steps = [int(m["step"]) for m in metrics]
    layers = [Series(phase.label, steps, [m.get(phase.key, math.nan) for m in metrics]) for phase in phases]
    means = [math.fsum(v for v in layer.values if math.isfinite(v)) / len(steps) for layer in layers]
    legend = _legend([(s.name, f"{mean:.1f} s") for s, mean in zip(layers, means, strict=True)], " blocks")
    total = f"{sum(means):.1f} s a step"
    drawing = stacked_bars(chart.title, steps, layers, lambda v: f"{number(v)} s")
    about = "Wall-clock time of each part of a step; the legend has the means."
    return _card(chart.title, total, drawing, legend, about)


def _legend(entries: Sequence[tuple[str, str]], style: str) -> str:
    items = "".join(
        f'<li><i class="b{n}"></i>{escape(name)} <b>{escape(value)}</b></li>' for n, (name, value) in enumerate(entries)
    )
    return f'<ul class="legend{style}">{items}</ul>'


def _card(title: str, latest: str, drawing: str, legend: str, about: str) -> str:
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3><span class="latest">{escape(latest)}</span>'
        f'</figcaption>{legend}{drawing}<p class="about">{escape(about)}</p></figure>'
    )


def _bands(metric: Metric) -> list[Band]:
    lows = [0.0, *(high for high, _ in metric.bands)]
    found = []
    for low, (high, name) in zip(lows, metric.bands, strict=False):
        if name in _COLOURED:
            limits = f"<{high:g}" if low == 0 else f">{low:g}" if math.isinf(high) else f"{low:g}-{high:g}"
            found.append(Band(f"{name} {limits}", low if low else -math.inf, high, name))
    return found


def evaluation_curves(evaluations: list[EvaluationResult]) -> str:
    """Held-out scores and KL over the steps, with error bars."""
    last = {e.step: e for e in evaluations}
    found = sorted(last.values(), key=lambda e: e.step)
    cards = []
    for name, pick in (("Gold score", _gold), ("Proxy score", _proxy), ("KL to the reference", _kl)):
        points = [(e.step, estimate) for e in found if (estimate := pick(e)) is not None]
        if points:
            steps, means = [step for step, _ in points], [estimate.mean for _, estimate in points]
            series = Series(name.lower(), steps, means, errors=[estimate.standard_error for _, estimate in points])
            bands = _bands(METRICS["objective/kl"]) if pick is _kl else ()
            chart = Drawing(f"{name}, held out", [series], number, bands=bands)
            cards.append(_card(chart.title, number(means[-1]), line_chart(chart), "", "Bars are one standard error."))
    return "".join(cards)


def _gold(result: EvaluationResult) -> Estimate | None:
    return result.gold


def _proxy(result: EvaluationResult) -> Estimate | None:
    return result.proxy


def _kl(result: EvaluationResult) -> Estimate | None:
    return result.kl
