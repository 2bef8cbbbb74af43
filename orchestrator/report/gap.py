"""The gap between proxy and gold over the distance from the reference, as in Gao et al., arXiv 2210.10760.

Evaluations flow in; fitted curves, bootstrap intervals and a card of the report flow out. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.display_text import number
from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.report.run_files import finite

RESAMPLES = 2000
"""Resamples of the values of an evaluation."""
LEVEL = 0.95
"""Share of the resamples' means that an interval holds."""
_LEAST = 3
"""Fewest points at different distances for a curve with two coefficients."""
_DRAWN = 60
"""Points of a drawn curve."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A score as a function of d = √KL: `start + d·(alpha − beta·log d)` for a policy that was trained (RL), and
    `start + d·(alpha − beta·d)` for the best of N (arXiv 2210.10760, where `start` is 0)."""

    start: float
    """The score of the policy before training, at d = 0."""
    alpha: float
    beta: float
    best_of_n: bool = False

    def at(self, d: float) -> float:
        """The score at a distance d ≥ 0."""
        return self.start + d * (self.alpha - self.beta * _second(d, self.best_of_n)) if d > 0 else self.start

    @property
    def peak(self) -> float | None:
        """The distance at which the curve is highest; None if it goes on rising, or falls from the start."""
        if self.beta <= 0 or (self.best_of_n and self.alpha <= 0):
            return None
        return self.alpha / (2 * self.beta) if self.best_of_n else math.exp(self.alpha / self.beta - 1)


def _second(d: float, best_of_n: bool) -> float:
    return d if best_of_n else math.log(d)


def fit(distances: Sequence[float], scores: Sequence[float], start: float, *, best_of_n: bool = False) -> Curve | None:
    """The curve from `start` with the least squared error; None for too few points.

    Args:
        distances: d = √KL, float `[points]`; those that are not positive or not finite are left out.
        scores: mean scores, float `[points]`; those that are not finite are left out.
    """
    points = [(d, y - start) for d, y in zip(distances, scores, strict=True) if 0 < d < math.inf and math.isfinite(y)]
    if len({d for d, _ in points}) < _LEAST or not math.isfinite(start):
        return None
    columns = np.array([(d, -d * _second(d, best_of_n)) for d, _ in points])
    (alpha, beta), _, rank, _ = np.linalg.lstsq(columns, np.array([y for _, y in points]), rcond=None)
    return Curve(start, float(alpha), float(beta), best_of_n) if rank == 2 else None


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval (percentiles, 95 %) of the mean of `values`, the same for every call; NaN for none."""
    if not values:
        return math.nan, math.nan
    rows = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = np.asarray(values, dtype=float)[rows].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def distance(evaluation: EvaluationResult) -> float:
    """√KL of an evaluation; 0 where the estimate of the KL is negative."""
    kl = math.nan if evaluation.kl is None else evaluation.kl.mean
    return math.sqrt(max(kl, 0.0)) if math.isfinite(kl) else math.nan


@dataclass(frozen=True, slots=True)
class Side:
    """One score of the evaluations of a run: the proxy or the gold score."""

    name: str
    distances: list[float]
    """d = √KL of each evaluation."""
    means: list[float]
    intervals: list[tuple[float, float]]
    curve: Curve | None


def sides(evaluations: Sequence[EvaluationResult]) -> list[Side]:
    """The gold and the proxy score over the distance; the curves start at the evaluation before training."""
    ordered = sorted((one for one in evaluations if one.kl is not None), key=lambda one: one.step)
    judged = [one for one in ordered if one.gold is not None and one.gold_values is not None]
    values: list[tuple[str, list[EvaluationResult], Callable[[EvaluationResult], list[float]]]] = [
        ("gold", judged, lambda one: one.gold_values or []),
        ("proxy", ordered, lambda one: one.proxy_values),
    ]
    found = []
    for name, own, of in values:
        if own:
            means = [math.fsum(of(one)) / len(of(one)) if of(one) else math.nan for one in own]
            distances = [distance(one) for one in own]
            curve = fit(distances[1:], means[1:], means[0]) if own[0].step == 0 else None
            found.append(Side(name, distances, means, [interval(of(one)) for one in own], curve))
    return found


def figure(both: Sequence[Side]) -> dict[str, Any] | None:
    """Points with their intervals and fitted curves, the first score on the left axis and the second on the right;
    None if no point can be drawn."""
    reach = max((d for side in both for d in side.distances if math.isfinite(d)), default=0.0)
    if not any(math.isfinite(value) for side in both for value in side.means):
        return None
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"showlegend": True, "height": 300, "hovermode": "closest"}
    layout["xaxis"] = {"title": _title("√KL to the reference")}
    for n, side in enumerate(both):
        number_of_axis = "" if n == 0 else str(n + 1)
        common = {"type": "scatter", "yaxis": f"y{number_of_axis}"}
        data.append({**common, **_points(side, f"--c{n}")})
        if side.curve is not None:
            data.append({**common, **_drawn(side.name, side.curve, reach, f"--c{n}")})
        right = {"overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"} if n else {}
        layout[f"yaxis{number_of_axis}"] = {"title": _title(side.name), **right}
    return finite({"data": data, "layout": layout})


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 2, "font": {"size": 11}}


def _points(side: Side, colour: str) -> dict[str, Any]:
    errors = [(high - mean, mean - low) for mean, (low, high) in zip(side.means, side.intervals, strict=True)]
    bars = {"array": _short([up for up, _ in errors]), "arrayminus": _short([down for _, down in errors])}
    return {
        "mode": "markers",
        "name": side.name,
        "x": _short(side.distances),
        "y": _short(side.means),
        "marker": {"color": colour, "size": 7},
        "error_y": {**bars, "symmetric": False, "color": colour, "thickness": 1.5, "width": 0},
        "hovertemplate": f"{side.name} %{{y}} at √KL %{{x}}<extra></extra>",
    }


def _drawn(name: str, curve: Curve, reach: float, colour: str) -> dict[str, Any]:
    xs = [reach * place / _DRAWN for place in range(_DRAWN + 1)]
    line = {"color": colour, "width": 1.5, "dash": "6px 3px"}
    ys = _short([curve.at(x) for x in xs])
    seen = {"showlegend": False, "hoverinfo": "skip"}
    return {"mode": "lines", "name": f"{name}, fitted", "x": _short(xs), "y": ys, "line": line, **seen}


def told(side: Side) -> str:
    """The fitted curve of a score in words; empty without one."""
    curve = side.curve
    if curve is None:
        return ""
    sign, last = "+" if curve.beta < 0 else "-", "d" if curve.best_of_n else "log d"
    text = f"{side.name} {number(curve.start)} + d({number(curve.alpha)} {sign} {number(abs(curve.beta))} {last})"
    far, peak = max(d for d in side.distances if math.isfinite(d)), curve.peak
    return text + (f", highest at √KL {number(peak)}" if peak is not None and peak <= far else "")


def _short(values: Sequence[float]) -> list[float]:
    """Six digits: more cannot be seen."""
    return [float(f"{value:.6g}") for value in values]
