"""How well the probabilities of a reward model agree with how often it is right. Differences of scores flow in, a
reliability curve and its error flow out. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10
"""Bins of equal width between confidences of 50 % and 100 %."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs of similar confidence. Example: `ReliabilityBin(0.62, 0.55, 40)`: of 40 pairs 22 are ordered rightly."""

    confidence: float
    """Mean probability that the model gives the response which it prefers."""
    accuracy: float
    """Mean probability of the order that the model prefers by the labels: 1 or 0 for a certain label; 1/2 for two equal
    scores."""
    pairs: int


def reliability(
    differences: Sequence[float], certainty: Sequence[float] | None = None, *, bins: int = BINS
) -> list[ReliabilityBin]:
    """The bins that hold pairs, by rising confidence.

    By the Bradley–Terry model the better response wins with probability σ(difference); the confidence is that
    probability or one less it, whichever is larger.

    Args:
        differences: score of the better response minus score of the worse, float `[pairs]`.
        certainty: probability of the label that the better one is better, float `[pairs]`; None: all are certain.
    """
    sure = [1.0] * len(differences) if certainty is None else certainty
    held: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for difference, label in zip(differences, sure, strict=True):
        confidence = _sigmoid(abs(difference))
        right = label if difference > 0 else 1 - label if difference < 0 else 0.5
        held[min(int((confidence - 0.5) * 2 * bins), bins - 1)].append((confidence, right))
    return [
        ReliabilityBin(
            math.fsum(confidence for confidence, _ in own) / len(own),
            math.fsum(right for _, right in own) / len(own),
            len(own),
        )
        for own in held
        if own
    ]


def calibration_error(curve: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, equation 3): the mean distance between confidence and
    accuracy, weighted by the bins' pairs; NaN for no pairs."""
    pairs = sum(one.pairs for one in curve)
    return math.fsum(one.pairs * abs(one.accuracy - one.confidence) for one in curve) / pairs if pairs else math.nan


def _sigmoid(value: float) -> float:
    """Of a value of 0 or more."""
    return 1 / (1 + math.exp(-value))
