"""The charts of `report.html`. A run's metrics and evaluations flow in, figures for Plotly flow out. Pure.

Which charts there are follows from the metrics that the run has: `orchestrator.metrics` says where each is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.counts import counted
from orchestrator.display_text import number, percent
from orchestrator.known_metrics import MEMBERS, metrics_in
from orchestrator.metric_types import Chart, Metric
from orchestrator.metrics import METRICS, RESPONSE_LENGTH
from orchestrator.report.curve_points import Line
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.figure import Band, curves, histogram, reliability_figure, stacked
from orchestrator.report.gap import figure as gap_figure
from orchestrator.report.gap import sides, told
from orchestrator.report.reliability import ReliabilityBin, calibration_error
from orchestrator.report.run_files import RunRecord

_COLOURED = {"close", "healthy", "far", "collapse"}
"""Bands that have a colour in `colours.css`; the others have none."""


@dataclass(frozen=True, slots=True)
class Card:
    """A chart and the texts around it."""

    title: str
    latest: str
    """The newest value, with its unit; empty for several curves, whose legend has them."""
    figure: dict[str, Any] | None
    """Plotly's `data` and `layout`; None if no value is finite."""
    summary: str
    """The curves in words, for screen readers and pages without scripts."""
    about: str
    """The meaning of the numbers."""


def training_cards(record: RunRecord) -> list[Card]:
    """The charts of the metrics that the run has, in the order of the metrics' declarations."""
    charts: dict[Chart, list[Metric]] = {}
    for metric in metrics_in(key for step in record.metrics for key in step).values():
        if metric.chart is not None:
            charts.setdefault(metric.chart, []).append(metric)
    return [(_stacked if chart.stacked else _curves)(chart, metrics, record) for chart, metrics in charts.items()]


def _curves(chart: Chart, metrics: list[Metric], record: RunRecord) -> Card:
    lines = [_line(metric, record.metrics) for metric in metrics]
    first, several = metrics[0], len(metrics) > 1
    show = percent if first.unit == "fraction" else number
    unit = "" if first.unit == "fraction" else first.unit
    targets = [record.state.targets[metric.key] for metric in metrics if metric.key in record.state.targets]
    length = _length([record])
    bands = _bands(first, length)
    about = [_about(metric, several) for metric in metrics]
    if bands:
        about.append(f"Bands{_scaled(first, length)}: {', '.join(band.name for band in bands)}.")
    if chart == MEMBERS:
        about.append(f"First to last step: {', '.join(_moved(metrics, record.metrics))}.")
    bad = sorted({step for line in lines for step, v in line.points if not math.isfinite(v)})
    if bad:
        about.append(f"Not a number at step {', '.join(map(str, bad[:8]))}{' and others' if len(bad) > 8 else ''}.")
    latest = "" if several else f"{show(lines[0].values[-1])} {unit}".strip()
    figure = curves(chart, lines, show, bands, targets)
    return Card(chart.title, latest, figure, _summary(lines, show), " ".join(about))


def _moved(members: Sequence[Metric], steps: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """How far each member's mean score has gone; its scale is its own, so also in deviations of its first batch."""
    for member in members:
        there = [step for step in steps if member.key in step]
        change = there[-1][member.key] - there[0][member.key]
        deviation = there[0].get(member.key.removesuffix("mean") + "std", math.nan)
        size = f" ({number(abs(change) / deviation)} deviations of the first batch)" if deviation > 0 else ""
        yield f"{member.label} {'+' * (change >= 0)}{number(change)}{size}"


def _stacked(chart: Chart, metrics: list[Metric], record: RunRecord) -> Card:
    lines = [_line(metric, record.metrics) for metric in metrics]
    means = [math.fsum(v for v in line.values if math.isfinite(v)) / len(record.metrics) for line in lines]
    unit = metrics[0].unit
    told = [f"{line.name} {mean:.1f} {unit}" for line, mean in zip(lines, means, strict=True)]
    about = "Wall-clock time of each part of a step; the legend has the means."
    figure = stacked(lines, told)
    return Card(chart.title, f"{sum(means):.1f} {unit} per step", figure, f"Means: {', '.join(told)}", about)


def _line(metric: Metric, steps: list[dict[str, float]]) -> Line:
    return Line(
        metric.label or metric.key, [(int(step["step"]), step[metric.key]) for step in steps if metric.key in step]
    )


def _about(metric: Metric, named: bool) -> str:
    text = metric.description
    return f"{metric.label or metric.key}: {text[0].lower()}{text[1:]}." if named else f"{text}."


def _summary(lines: Sequence[Line], show: Callable[[float], str]) -> str:
    parts = []
    for line in lines:
        finite = [(step, value) for step, value in line.points if math.isfinite(value)]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            low, high = min(v for _, v in finite), max(v for _, v in finite)
            parts.append(
                f"{line.name} from {show(start)} at step {first} to {show(end)} at step {last}, "
                f"between {show(low)} and {show(high)}"
            )
    return "; ".join(parts) or "no finite value was recorded"


def _mean(values: Sequence[float]) -> float | None:
    """None if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _length(records: Iterable[RunRecord]) -> float | None:
    """Mean length of the responses in all steps; None if no step says it."""
    return _mean([step[RESPONSE_LENGTH] for one in records for step in one.metrics if RESPONSE_LENGTH in step])


def _scaled(metric: Metric, length: float | None) -> str:
    """For which responses the bands are drawn."""
    tokens = metric.bands.tokens if metric.bands else None
    return f" for responses of {number(length or tokens)} tokens" if tokens else ""


def _drawn(metric: Metric, length: float | None) -> str:
    return f"; bands{scaled}" if (scaled := _scaled(metric, length)) else ""


def _bands(metric: Metric, length: float | None) -> list[Band]:
    """The bands that have a colour. `length`: see `orchestrator.metric_types.Bands.at`."""
    bounds = metric.bands.at(length) if metric.bands else ()
    lows = [-math.inf, *(high for high, _ in bounds)]
    found = []
    for low, (high, name) in zip(lows, bounds, strict=False):
        if name in _COLOURED:
            limits = (
                f">{low:.3g}" if math.isinf(high) else f"<{high:.3g}" if math.isinf(low) else f"{low:.3g}-{high:.3g}"
            )
            found.append(Band(f"{name} {limits}", low, high, name))
    return found


_HELD_OUT: tuple[tuple[str, Callable[[EvaluationResult], Estimate | None], str], ...] = (
    ("Gold score", lambda result: result.gold, ""),
    ("Proxy score", lambda result: result.proxy, ""),
    ("KL to the reference", lambda result: result.kl, "objective/kl"),
)
"""Title of a chart, its value in an evaluation, and the metric whose bands are drawn."""


def evaluation_cards(sets: Mapping[str, Sequence[EvaluationResult]]) -> list[Card]:
    """Held-out scores and KL over the steps, with error bars; a curve for each set of prompts. The first compares the
    steps of the run."""
    ordered = {name: sorted({e.step: e for e in own}.values(), key=lambda e: e.step) for name, own in sets.items()}
    cards = []
    for title, pick, key in _HELD_OUT:
        lines = []
        for place, (name, found) in enumerate(ordered.items()):
            points = [(e.step, estimate) for e in found if (estimate := pick(e)) is not None]
            means, errors = [(step, one.mean) for step, one in points], [one.standard_error for _, one in points]
            own = name or ("heldout" if len(sets) > 1 else title)
            lines += [Line(own, means, errors, place=place)] if points else []
        if lines:
            chart = Chart(f"{title}, held out")
            lengths = [e.length.mean for found in ordered.values() for e in found]
            bands = _bands(METRICS[key], _mean(lengths)) if key else []
            figure = curves(chart, lines, number, bands, [])
            about = "Bars are one standard error."
            latest = number(lines[0].points[-1][1]) if len(lines) == 1 else ""
            cards.append(Card(chart.title, latest, figure, _summary(lines, number), about))
    return cards


def gap_cards(evaluations: list[EvaluationResult]) -> list[Card]:
    """The proxy and the gold score over √KL, with fitted curves; none without gold scores."""
    both = sides(sorted({e.step: e for e in evaluations}.values(), key=lambda e: e.step))
    if len(both) < 2:
        return []
    fitted = "; ".join(text for side in both if (text := told(side)))
    about = "d = √KL of each evaluation; bars are 95 % bootstrap intervals of the means. "
    about += (
        f"Dashed, by least squares (arXiv 2210.10760): {fitted}."
        if fitted
        else "Too few evaluations for a fitted curve."
    )
    return [Card("Proxy and gold over √KL", "", gap_figure(both), fitted or "too few evaluations for a curve", about)]


def histogram_cards(scores: Mapping[str, Sequence[float]]) -> list[Card]:
    """How the scores are distributed, of each set of them; none without scores."""
    figure = histogram(scores)
    if figure is None:
        return []
    told = "; ".join(
        f"{name}: {len(values)} scores between {number(min(values))} and {number(max(values))}"
        for name, values in scores.items()
        if values
    )
    return [Card("Distribution of the scores", "", figure, told, "Share of the responses in each range of the score.")]


def run_cards(records: Mapping[str, RunRecord]) -> list[Card]:
    """The charts of several runs, by their names: each metric that has a chart, with a curve for each run."""
    found = metrics_in(key for record in records.values() for step in record.metrics for key in step).values()
    return [metric_card(one, records) for one in found if one.chart is not None and not one.chart.stacked]


def metric_card(metric: Metric, records: Mapping[str, RunRecord]) -> Card:
    """The chart of one metric, with a curve for each of the runs that has it. `records`: by the runs' names."""
    named = enumerate(records.items())  # a run has the same colour in every chart
    lines = [replace(_line(metric, record.metrics), name=name, place=n) for n, (name, record) in named]
    lines = [line for line in lines if line.points]
    show = percent if metric.unit == "fraction" else number
    length = _length(records.values())
    figure = curves(metric.chart or Chart(metric.key), lines, show, _bands(metric, length), [])
    unit = f", {metric.unit}" if metric.unit not in ("", "fraction") else ""
    alone = f"{lines[0].name} {show(lines[0].values[-1])}" if len(lines) == 1 else ""
    about = f"{metric.description}{unit}{_drawn(metric, length)}."
    return Card(metric.key, alone, figure, _summary(lines, show), about)


def reliability_cards(curve: Sequence[ReliabilityBin]) -> list[Card]:
    """The accuracy of a reward model over its confidence; none without a test."""
    if not curve:
        return []
    text = "; ".join(
        f"{percent(one.confidence)} sure, {percent(one.accuracy)} right ({counted(one.pairs, 'pair')})" for one in curve
    )
    about = (
        "Held-out pairs in bins of the probability that the model gives to the response which it prefers, and how "
        "often it orders them rightly; on the dashed line it is as sure as it is right. Bars are 95 % intervals, "
        "counting each pair as independent."
    )
    error = f"calibration error {percent(calibration_error(curve))}"
    return [Card("Reliability", error, reliability_figure(curve), text, about)]
