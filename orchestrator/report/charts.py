"""The cards of `report.html` that hold a curve. A run's metrics and evaluations flow in, markup flows out.

Called by `orchestrator.report.page`. To draw another metric, add a line to `_CURVES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.formats import number, percent
from orchestrator.metrics import METRICS, PHASES, phase_name
from orchestrator.report.files import RunRecord
from orchestrator.report.kl_bands import BANDS
from orchestrator.report.results import Estimate, EvaluationResult
from orchestrator.report.svg import Band, Chart, Series, escape, line_chart, stacked_bars

_COLOURED = {"close": "close", "healthy": "healthy", "far": "far", "collapse": "collapse"}
"""Band of `orchestrator.ppo.kl.BANDS` → CSS class; the bands between them have no colour."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """A chart of the page: which metrics it draws, and how."""

    title: str
    keys: tuple[str, ...]
    low: float | None = None
    logarithmic: bool = False
    reach: tuple[float, ...] = ()


_CURVES = (
    _Curve("Score", ("score/mean", "reward/mean")),
    _Curve("KL to the reference", ("objective/kl",), reach=(0.0, 6.3)),
    _Curve("Entropy", ("objective/entropy",)),
    _Curve("Clip fraction", ("policy/clip_fraction", "value/clip_fraction"), low=0.0),
    _Curve("Value loss", ("value/loss",), low=0.0),
    _Curve("Explained variance", ("value/explained_variance",), low=-1.0, reach=(1.0,)),
    _Curve("Response length", ("response/length_mean",)),
    _Curve("Truncated responses", ("response/truncated_fraction",), low=0.0),
    _Curve("Policy update", ("policy/approx_kl",), low=0.0),
    _Curve("Gradient norm", ("policy/gradient_norm", "value/gradient_norm"), low=0.0),
    _Curve("Log-probability gap", ("engine/logprob_gap_mean", "engine/logprob_gap_max"), logarithmic=True),
    _Curve("KL coefficient", ("kl/coefficient",), low=0.0),
    _Curve("Learning rates", ("lr/actor", "lr/critic"), low=0.0),
    _Curve("Throughput", ("tokens/generated_per_s",), low=0.0),
)


def training_curves(record: RunRecord) -> str:
    """The section of the curves over the training steps; empty without steps."""
    cards = [_curve_card(curve, record) for curve in _CURVES]
    cards.insert(8, _phase_card(record.metrics))
    shown = "".join(card for card in cards if card)
    return f'<section>\n<h2>Training</h2>\n<div class="charts">{shown}</div>\n</section>' if shown else ""


def _curve_card(curve: _Curve, record: RunRecord) -> str:
    lines = []
    for key in curve.keys:
        points = [(int(m["step"]), m[key]) for m in record.metrics if key in m]
        if points:
            lines.append(Series(key, [step for step, _ in points], [value for _, value in points]))
    if not lines:
        return ""
    show = percent if METRICS[curve.keys[0]].unit == "fraction" else number
    is_kl = curve.keys == ("objective/kl",)
    target = record.state.kl_target if is_kl else None
    reach = curve.reach if target is None else (*curve.reach, target)
    chart = Chart(
        curve.title, lines, show, curve.low, reach, curve.logarithmic, bands=_bands() if is_kl else (), target=target
    )
    drawing = line_chart(chart) or '<p class="about">No finite value was recorded.</p>'
    legend = "" if len(lines) == 1 else _legend([(s.name, show(s.values[-1])) for s in lines], "")
    latest = _with_unit(lines[0].values[-1], curve.keys[0], show) if len(lines) == 1 else ""
    about = " ".join(_about(s.name, len(lines) > 1) for s in lines)
    bad = sorted({step for s in lines for step, v in zip(s.steps, s.values, strict=True) if not math.isfinite(v)})
    if is_kl:
        about += f" Bands: {', '.join(band.name for band in _bands())}."
    if bad:
        about += f" Not a number at step {', '.join(map(str, bad[:8]))}{' and others' if len(bad) > 8 else ''}."
    return _card(curve.title, latest, drawing, legend, about)


def _about(key: str, named: bool) -> str:
    text = METRICS[key].description
    return f"{key}: {text[0].lower()}{text[1:]}." if named else f"{text}."


def _with_unit(value: float, key: str, show: Callable[[float], str]) -> str:
    unit = METRICS[key].unit
    return show(value) if unit in ("", "fraction") else f"{show(value)} {unit}"


def _phase_card(metrics: list[dict[str, float]]) -> str:
    keys = [key for key in PHASES if any(key in m for m in metrics)]
    if not keys:
        return ""
    steps = [int(m["step"]) for m in metrics]
    layers = [Series(phase_name(key), steps, [m.get(key, math.nan) for m in metrics]) for key in keys]
    means = [math.fsum(v for v in layer.values if math.isfinite(v)) / len(steps) for layer in layers]
    legend = _legend([(s.name, f"{mean:.1f} s") for s, mean in zip(layers, means, strict=True)], " blocks")
    total = f"{sum(means):.1f} s a step"
    drawing = stacked_bars("Seconds by phase", steps, layers, lambda v: f"{number(v)} s")
    about = "Wall-clock time of each part of a step; the legend has the means."
    return _card("Seconds by phase", total, drawing, legend, about)


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


def _bands() -> list[Band]:
    lows = [0.0, *(high for high, _ in BANDS)]
    found = []
    for low, (high, name) in zip(lows, BANDS, strict=False):
        if name in _COLOURED:
            limits = f"<{high:g}" if low == 0 else f">{low:g}" if math.isinf(high) else f"{low:g}-{high:g}"
            found.append(Band(f"{name} {limits}", low if low else -math.inf, high, _COLOURED[name]))
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
            chart = Chart(f"{name}, held out", [series], number, bands=_bands() if pick is _kl else ())
            cards.append(_card(chart.title, number(means[-1]), line_chart(chart), "", "Bars are one standard error."))
    return "".join(cards)


def _gold(result: EvaluationResult) -> Estimate | None:
    return result.gold


def _proxy(result: EvaluationResult) -> Estimate | None:
    return result.proxy


def _kl(result: EvaluationResult) -> Estimate | None:
    return result.kl
