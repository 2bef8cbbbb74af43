"""Which evaluation is the best, and when a run ends after it: made-up series of gold scores."""

from __future__ import annotations

import math

import pytest

from orchestrator.ppo.gold_stop import GoldScores, best_step, best_steps, first_that_counts, why_end

PEAK = {0: 0.1, 4: 0.3, 8: 0.5, 12: 0.4, 16: 0.2, 20: -0.1}
"""Rises, and falls after step 8."""


def ends_at(scores: GoldScores, patience: int | None) -> int | None:
    """The step after which a run ends that is told one evaluation after the other."""
    steps = sorted(scores)
    told = ({step: scores[step] for step in steps[: n + 1]} for n in range(len(steps)))
    return next((max(known) for known in told if why_end(known, patience)), None)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({}, None),
        ({0: math.nan}, None),
        ({0: 0.0}, 0),
        (PEAK, 8),
        ({8: 0.5, 0: 0.5, 4: 0.5}, 0),
        ({0: math.nan, 4: -1.0, 8: math.nan}, 4),
        ({0: -0.3, 4: -0.2}, 4),
    ],
)
def test_the_best_is_the_first_of_the_highest(scores: GoldScores, best: int | None) -> None:
    assert best_step(scores) == best


def test_the_best_of_several() -> None:
    assert best_steps(PEAK, 3) == [8, 12, 4]
    assert best_steps({0: math.nan, 4: 0.1, 8: 0.1}, 3) == [4, 8]


@pytest.mark.parametrize(
    ("scores", "patience", "end"),
    [
        (PEAK, 1, 12),  # one evaluation after the peak
        (PEAK, 2, 16),
        (PEAK, 3, 20),
        (PEAK, 4, None),
        (PEAK, None, None),
        ({0: 0.1, 4: 0.0, 8: 0.2, 12: 0.1, 16: 0.3, 20: 0.2}, 2, None),  # each new best begins the count anew
        ({0: 0.5, 4: 0.4, 8: 0.45}, 2, 8),  # the untrained policy is the best
        ({0: 0.5, 4: 0.5, 8: 0.5}, 2, 8),  # an equal score is no new best
        ({0: 0.1, 4: math.nan, 8: math.nan}, 2, 8),
        ({0: math.nan, 4: math.nan, 8: math.nan}, 1, None),
        ({0: 0.1, 4: 0.2, 8: 0.3}, 1, None),
    ],
)
def test_a_run_ends_when_patience_is_spent(scores: GoldScores, patience: int | None, end: int | None) -> None:
    assert ends_at(scores, patience) == end


def test_the_user_is_told_why_and_at_which_step() -> None:
    told = why_end({step: PEAK[step] for step in (0, 4, 8, 12, 16)}, 2)
    assert told == (
        "evaluation.stop: the gold score was highest at step 8 (+0.500), and patience=2 is spent (+0.400 at step 12, "
        "+0.200 at step 16); training ends after step 16, and the run leaves the models of step 8"
    )


@pytest.mark.parametrize(
    ("kept", "now", "first"),
    [
        (8, 12, 0),  # the best was kept: all count
        (None, 8, 0),  # killed before the models of the best, which is the current step, were kept
        (4, 8, 0),
        (None, 12, 12),  # the best is gone
        (12, 12, 12),  # as after that, when the run goes on again
        (12, 16, 12),
        (4, 16, 16),  # the best since step 4 is gone too
        (20, 8, 0),  # kept later than where the run goes on
        (20, 10, 10),
    ],
)
def test_evaluations_count_from_where_the_best_ones_models_exist(kept: int | None, now: int, first: int) -> None:
    scores = {step: score for step, score in PEAK.items() if step <= now}
    assert first_that_counts(scores, kept, now) == first
    assert first_that_counts({}, kept, now) == 0
