"""The change of scores, against the definitions."""

from __future__ import annotations

import statistics
from itertools import product

import pytest
import torch

from orchestrator.ppo.score_change import ScoreChange, average_ranks
from roles.measured import measured


def plain_ranks(values: list[float]) -> list[float]:
    """The mean place of each value among all places that its equals could have."""
    return [statistics.mean([*(sum(v < one for v in values) + n for n in range(values.count(one)))]) for one in values]


def plain_correlation(before: list[float], after: list[float]) -> float | None:
    first, second = plain_ranks(before), plain_ranks(after)
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return statistics.correlation(first, second)


@pytest.mark.parametrize("after", list(product([0.0, 1.0, 2.5], repeat=4))[::4])
def test_against_the_definition_with_ties(after: tuple[float, ...]) -> None:
    before = [0.5, -1.0, 0.5, 3.0]
    change = ScoreChange.of(torch.tensor(before), torch.tensor(after))
    assert average_ranks(torch.tensor(after)).tolist() == plain_ranks(list(after))
    expected = plain_correlation(before, list(after))
    assert change.rank_correlation == (None if expected is None else pytest.approx(expected))
    assert (change.mean_before, change.std_before) == (0.75, pytest.approx(statistics.pstdev(before)))
    assert (change.mean, change.std) == (pytest.approx(statistics.mean(after)), pytest.approx(statistics.pstdev(after)))


def test_the_order_alone_counts() -> None:
    before = torch.tensor([3.0, -1.0, 0.1, 0.2])
    assert ScoreChange.of(before, before.exp()).rank_correlation == pytest.approx(1.0)
    assert ScoreChange.of(before, -before).rank_correlation == pytest.approx(-1.0)


def test_scores_that_are_all_equal_have_no_order() -> None:
    change = ScoreChange.of(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0]))
    assert "retraining/pinned_rank_correlation" not in measured(change)
    assert measured(change)["retraining/pinned_mean"] == 5.0
