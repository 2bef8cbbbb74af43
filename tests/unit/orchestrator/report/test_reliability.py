"""Reliability of a reward model's probabilities."""

from __future__ import annotations

import math
import random
from itertools import pairwise, product

import pytest

from orchestrator.report.reliability import ReliabilityBin, calibration_error, reliability


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def brute(differences: list[float], bins: int) -> float:
    """The error by its definition, bin by bin."""
    total = 0.0
    for number in range(bins):
        low, high = 0.5 + number / bins / 2, 0.5 + (number + 1) / bins / 2
        own = []
        for d in differences:
            p = 1 / (1 + math.exp(-abs(d)))
            if low <= p < high or (number == bins - 1 and p >= high):
                own.append((p, d > 0))
        if own:
            confidence, accuracy = sum(p for p, _ in own) / len(own), sum(right for _, right in own) / len(own)
            total += len(own) / len(differences) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("bins", [1, 2, 3, 10])
def test_against_the_definition_for_all_signs(bins: int) -> None:
    for signs in product((-1, 1), repeat=6):
        sizes = (0.1, 0.3, 0.9, 1.7, 2.6, 5.2)
        differences = [sign * size for sign, size in zip(signs, sizes, strict=True)]
        curve = reliability(differences, bins=bins)
        assert calibration_error(curve) == pytest.approx(brute(differences, bins))
        assert sum(one.pairs for one in curve) == 6
        assert all(a.confidence < b.confidence for a, b in pairwise(curve))


def test_probabilities_that_are_true_have_a_small_error() -> None:
    chance = random.Random(1)
    sizes = [abs(chance.gauss(0, 1.5)) for _ in range(20_000)]
    honest = [size if chance.random() < 1 / (1 + math.exp(-size)) else -size for size in sizes]
    assert calibration_error(reliability(honest)) < 0.015
    assert calibration_error(reliability([3 * difference for difference in honest])) > 0.1, "too sure of itself"
    assert calibration_error(reliability([difference / 5 for difference in honest])) > 0.1, "too unsure"


def test_a_bin() -> None:
    (only,) = reliability([logit(0.62), logit(0.64), -logit(0.63), logit(0.63)], bins=5)
    assert only == ReliabilityBin(pytest.approx(0.63), 0.75, 4)
    assert calibration_error([only]) == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("differences", "error"),
    [([], math.nan), ([0.0], 0.0), ([0.0, 0.0], 0.0), ([1e9], 0.0), ([-1e9], 1.0), ([math.inf, -math.inf], 0.5)],
)
def test_the_ends(differences: list[float], error: float) -> None:
    assert calibration_error(reliability(differences)) == pytest.approx(error, nan_ok=True)


def test_a_soft_label_counts_as_the_probability_that_it_is() -> None:
    """A model that says 60 % of labels that say 60 %, whichever it prefers, is not wrong."""
    (only,) = reliability([logit(0.6), logit(0.6)], [0.6, 0.6])
    assert (only.confidence, only.accuracy) == (pytest.approx(0.6), pytest.approx(0.6))
    (turned,) = reliability([-logit(0.6)], [0.7])
    assert turned.accuracy == pytest.approx(0.3)
