"""Soft labels from answers in both orders, and how far a judge can be trusted."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.data.labels import JudgeVerdict, Reliability, labelled_row

GRID = [None, 0.0, 0.2, 0.5, 0.7, 1.0]


@pytest.mark.parametrize(("forward", "backward"), list(itertools.product(GRID, GRID)))
def test_a_label_is_the_mean_of_both_orders(forward: float | None, backward: float | None) -> None:
    verdict = JudgeVerdict(forward, backward)
    turned = JudgeVerdict(backward, forward)
    if forward is None or backward is None:
        assert verdict.probability is None and not verdict.consistent
        return
    assert verdict.probability == pytest.approx((forward + (1 - backward)) / 2)
    assert turned.probability == pytest.approx(1 - verdict.probability)
    first_wins, second_wins = (forward > 0.5, backward < 0.5), (forward < 0.5, backward > 0.5)
    assert verdict.consistent == turned.consistent == (all(first_wins) or all(second_wins))


def test_a_preference_for_a_position_cancels() -> None:
    """A judge whose odds for what is shown first are some times too high, in either order."""
    fair = 0.7
    for favour in (0.0, 0.1, 0.29):
        verdict = JudgeVerdict(fair + favour, (1 - fair) + favour)
        assert verdict.probability == pytest.approx(fair)


def test_reliability_against_loops() -> None:
    pairs = [(0.9, 0.1), (0.9, 0.8), (0.2, 0.3), (None, 0.9), (0.4, 0.6), (0.5, 0.5), (1.0, None), (None, None)]
    found = Reliability.of([JudgeVerdict(*pair) for pair in pairs])
    assert (found.compared, found.abstained) == (8, 3)
    assert found.agreement == pytest.approx(2 / 5)
    assert found.position_bias == pytest.approx((1.0 + 1.7 + 0.5 + 1.0 + 1.0) / 10 - 0.5)
    assert (found.first_both_times, found.second_both_times) == (pytest.approx(1 / 5), pytest.approx(1 / 5))


def test_without_answers_nothing_is_said() -> None:
    found = Reliability.of([JudgeVerdict(None, 0.5)])
    assert (found.compared, found.abstained, found.agreement, found.position_bias) == (1, 1, None, None)
    assert Reliability.of([]).agreement is None


@pytest.mark.parametrize(
    ("probability", "minimum", "chosen"),
    [
        (0.9, 0.5, ("x", 0.9)),
        (0.1, 0.5, ("y", 0.9)),
        (0.5, 0.5, None),
        (1.0, 0.9, ("x", 1.0)),
        (0.0, 0.9, ("y", 1.0)),
        (0.8, 0.8, None),
        (0.3, 0.8, None),
    ],
)
def test_the_more_probable_response_is_chosen(
    probability: float, minimum: float, chosen: tuple[str, float] | None
) -> None:
    row = labelled_row("q", ("x", "y"), probability, minimum)
    if chosen is None:
        assert row is None
        return
    other = {"x": "y", "y": "x"}[chosen[0]]
    assert row == {
        "prompt": "q",
        "chosen": chosen[0],
        "rejected": other,
        "chosen_probability": pytest.approx(chosen[1]),
    }
