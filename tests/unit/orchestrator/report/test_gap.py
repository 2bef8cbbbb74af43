"""The gap between proxy and gold: fitted curves, bootstrap intervals, and what the report draws of them."""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from orchestrator.report.charts import gap_cards
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.gap import Curve, distance, figure, fit, interval, sides, told

DISTANCES = [0.5, 1.0, 2.0, 3.0, 4.5]


def evaluation(step: int, kl: float, gold: float | None, proxy: float) -> EvaluationResult:
    def around(mean: float) -> list[float]:
        return [mean - 0.3, mean + 0.1, mean + 0.2]

    own = None if gold is None else around(gold)
    return EvaluationResult(
        step=step,
        label=f"step {step}" if step else "before",
        prompts=3,
        proxy=Estimate.of(around(proxy)),
        gold=None if own is None else Estimate.of(own),
        kl=Estimate(kl, 0.1),
        length=Estimate(9.0, 0.5),
        truncated_fraction=0.0,
        samples=[],
        proxy_values=around(proxy),
        gold_values=own,
    )


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.25), (1.0, 0.0), (-0.2, -0.1)])
@pytest.mark.parametrize("best_of_n", [False, True])
def test_the_curve_that_made_the_points_is_found(alpha: float, beta: float, best_of_n: bool) -> None:
    start = 0.3
    second = (lambda d: d) if best_of_n else math.log
    scores = [start + d * (alpha - beta * second(d)) for d in DISTANCES]
    curve = fit(DISTANCES, scores, start, best_of_n=best_of_n)
    assert curve is not None
    assert (curve.alpha, curve.beta) == pytest.approx((alpha, beta), abs=1e-9)
    assert [curve.at(d) for d in DISTANCES] == pytest.approx(scores) and curve.at(0.0) == start


def test_no_other_coefficients_have_a_smaller_error() -> None:
    chance = random.Random(1)
    scores = [chance.uniform(-1, 1) for _ in DISTANCES]
    curve = fit(DISTANCES, scores, 0.1)
    assert curve is not None

    def error(alpha: float, beta: float) -> float:
        other = Curve(0.1, alpha, beta)
        return sum((other.at(d) - score) ** 2 for d, score in zip(DISTANCES, scores, strict=True))

    least = error(curve.alpha, curve.beta)
    for step in (-1e-3, 1e-3):
        assert error(curve.alpha + step, curve.beta) > least < error(curve.alpha, curve.beta + step)


@pytest.mark.parametrize("best_of_n", [False, True])
def test_the_peak_is_the_highest_point(best_of_n: bool) -> None:
    curve = Curve(0.0, 0.7, 0.25, best_of_n)
    assert curve.peak is not None
    assert curve.at(curve.peak) > max(curve.at(curve.peak * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert Curve(0.0, 0.7, -0.1, best_of_n).peak is None
    assert Curve(0.0, -0.7, 0.1, True).peak is None


@pytest.mark.parametrize(
    ("distances", "scores", "start"),
    [
        ([], [], 0.0),
        ([1.0, 2.0], [0.1, 0.2], 0.0),
        ([1.0, 1.0, 1.0], [0.1, 0.2, 0.3], 0.0),
        ([0.0, 1.0, 2.0], [0.1, 0.2, 0.3], 0.0),
        ([math.nan, 1.0, 2.0], [0.1, 0.2, 0.3], 0.0),
        ([1.0, 2.0, 3.0], [0.1, math.nan, 0.3], 0.0),
        ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], math.nan),
    ],
)
def test_too_few_points_have_no_curve(distances: list[float], scores: list[float], start: float) -> None:
    assert fit(distances, scores, start) is None


def test_the_interval_of_a_mean() -> None:
    chance = random.Random(3)
    values = [chance.gauss(0.4, 1.0) for _ in range(400)]
    low, high = interval(values)
    error = Estimate.of(values).standard_error
    assert (fmean(values) - low, high - fmean(values)) == pytest.approx((1.96 * error, 1.96 * error), rel=0.1)
    assert interval(values) == (low, high), "the same for every call"
    assert interval(values, seed=1) != (low, high)
    assert interval([0.5]) == (0.5, 0.5) and all(map(math.isnan, interval([])))


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    chance, held = random.Random(5), 0
    for seed in range(200):
        low, high = interval([chance.gauss(0.0, 1.0) for _ in range(60)], seed)
        held += low <= 0 <= high
    assert 0.89 <= held / 200 <= 0.98


def test_the_distance_is_the_root_of_the_kl() -> None:
    assert [distance(evaluation(1, kl, 0.0, 0.0)) for kl in (4.0, 0.0, -0.02)] == [2.0, 0.0, 0.0]
    assert math.isnan(distance(evaluation(1, math.nan, 0.0, 0.0)))


OVER = [(0, 0.0, 0.1, 0.0), (2, 1.0, 0.5, 0.8), (4, 4.0, 0.7, 1.7), (6, 9.0, 0.6, 2.4), (8, 16.0, 0.2, 3.3)]


def test_gold_and_proxy_have_their_curves_from_the_score_before_training() -> None:
    gold, proxy = sides([evaluation(*row) for row in reversed(OVER)])
    assert (gold.name, proxy.name) == ("gold", "proxy")
    assert gold.distances == [0.0, 1.0, 2.0, 3.0, 4.0] and gold.means == pytest.approx([row[2] for row in OVER])
    assert gold.curve is not None and gold.curve.start == pytest.approx(0.1)
    assert gold.curve.peak is not None and 1 < gold.curve.peak < 3
    assert all(low <= mean <= high for mean, (low, high) in zip(gold.means, gold.intervals, strict=True))
    assert "highest at √KL" in told(gold) and "highest" not in told(proxy)


def test_without_the_evaluation_before_training_there_is_no_start_for_a_curve() -> None:
    assert [side.curve for side in sides([evaluation(*row) for row in OVER[1:]])] == [None, None]


def test_the_report_draws_points_with_intervals_and_curves() -> None:
    (card,) = gap_cards([evaluation(*row) for row in OVER])
    assert card.figure is not None
    points, curve, right, other = card.figure["data"]
    assert [trace["name"] for trace in card.figure["data"]] == ["gold", "gold, fitted", "proxy", "proxy, fitted"]
    assert points["x"] == [0.0, 1.0, 2.0, 3.0, 4.0] and len(points["error_y"]["arrayminus"]) == 5
    assert (points["yaxis"], right["yaxis"], card.figure["layout"]["yaxis2"]["side"]) == ("y", "y2", "right")
    assert curve["y"][0] == pytest.approx(0.1) and max(curve["x"]) == 4.0 == max(other["x"])
    assert "gold 0.1 + d(" in card.about and "log d)" in card.summary


def test_without_a_judge_there_is_no_gap() -> None:
    assert gap_cards([evaluation(step, kl, None, proxy) for step, kl, _, proxy in OVER]) == []


def test_what_cannot_be_drawn() -> None:
    assert figure([]) is None
    bare = gap_cards([evaluation(*row) for row in OVER[:2]])
    assert bare[0].summary == "too few evaluations for a curve" and bare[0].figure is not None
    (odd,) = gap_cards([evaluation(*row) for row in [*OVER, (10, math.nan, math.nan, 4.0)]])
    assert odd.figure is not None and odd.figure["data"][0]["y"][-1] is None
