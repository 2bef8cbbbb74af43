"""The schedule of reward training, how groups are shared out, and the accuracy with its error."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from orchestrator.data.comparisons import Comparisons, group_shards, schedule
from orchestrator.errors import TetrarchError
from orchestrator.stages.reward_training import RewardQuality, _quality, check_quality
from tests.unit.orchestrator.stages.test_sampled_pairs import ranked, training


def test_every_epoch_is_a_fresh_permutation_of_all_groups() -> None:
    preferences = ranked([[1.0, 0.0]] * 10)
    steps = schedule(preferences, training(epochs=2, groups_per_step=4), seed=0)
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    first, second = (list(itertools.chain(*steps[epoch * 3 : epoch * 3 + 3])) for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert steps == schedule(preferences, training(epochs=2, groups_per_step=4), seed=0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_group_stays_on_one_rank(ranks: int) -> None:
    preferences = ranked([[1.0, 0.0, 0.5]] * 4)
    parts = group_shards([3, 0, 2], preferences, ranks)
    assert len(parts) == ranks
    assert sorted(row for part in parts for row in part) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    for part in parts:
        assert all(part.count(row) == 1 for row in part)
        assert len(part) % 3 == 0 and {row // 3 * 3 for row in part} == set(part[::3])


def test_accuracy_counts_pairs_in_the_judges_order() -> None:
    heldout = ranked([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0, 0.0]])
    scores = torch.tensor([5.0, 1.0, 5.0, 1.0, 3.0, 2.0, 4.0])
    quality = _quality(scores, Comparisons(ranked([[1.0, 0.0]]), heldout, left_out=7))
    # right; wrong; (4,5) right, (4,6) and (5,6) wrong
    assert quality.comparisons == 5
    assert quality.accuracy == pytest.approx(2 / 5)
    assert (quality.training_comparisons, quality.left_out_groups) == (1, 7)


def test_calibration_compares_what_the_model_says_with_the_labels() -> None:
    """It is 73 % sure of each of two pairs. With certain labels it is right once; where the labels themselves say 73 %
    of what it prefers and 73 % of the opposite, it should be as sure as that on average."""
    heldout, scores = ranked([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    certain = _quality(scores, Comparisons(heldout, heldout, 0))
    sure = 1 / (1 + math.exp(-1))
    assert [(one.confidence, one.accuracy, one.pairs) for one in certain.reliability] == [(pytest.approx(sure), 0.5, 2)]
    assert certain.calibration_error == certain.metrics()["preference/heldout_calibration_error"]
    assert certain.calibration_error == pytest.approx(sure - 0.5)
    written = json.loads(certain.to_json())
    assert written["calibration_error"] == certain.calibration_error
    assert written["reliability"] == [asdict(one) for one in certain.reliability]
    soft = replace(ranked([[1.0, 0.0], [1.0, 0.0]]), certainty=torch.tensor([sure] * 4))
    assert _quality(scores, Comparisons(soft, soft, 0)).calibration_error == pytest.approx(0, abs=1e-6)


def test_the_error_counts_a_group_once() -> None:
    """A group whose comparisons always agree is one observation, not many (a clustered standard error)."""
    one = ranked([[1.0, 0.0]] * 8)
    right = torch.tensor([1.0, 0.0] * 4 + [0.0, 1.0] * 4)
    single = _quality(right, Comparisons(one, one, 0)).standard_error
    assert single == pytest.approx((0.25 / 8) ** 0.5)
    # Each comparison four times over (two better and two worse rows): no more is known than before.
    four = ranked([[1.0, 1.0, 0.0, 0.0]] * 8)
    right = torch.tensor([1.0, 1.0, 0.0, 0.0] * 4 + [0.0, 0.0, 1.0, 1.0] * 4)
    assert _quality(right, Comparisons(four, four, 0)).standard_error == pytest.approx(single)


@pytest.mark.parametrize(
    ("accuracy", "error", "minimum", "passes"),
    [
        (0.65, 0.03, 0.5, True),
        (0.55, 0.03, 0.5, False),
        (0.9, 0.03, 0.8, True),
        (0.84, 0.03, 0.8, False),
        (0.3, 0.1, 0.0, True),
    ],
)
def test_an_accuracy_that_chance_explains_is_refused(
    accuracy: float, error: float, minimum: float, passes: bool
) -> None:
    quality = RewardQuality(accuracy, error, 1000, comparisons=1000, training_comparisons=400, left_out_groups=0)
    if passes:
        check_quality(quality, minimum)
        return
    with pytest.raises(TetrarchError, match=f"{accuracy:.1%}.*minimum_accuracy={minimum:.0%}"):
        check_quality(quality, minimum)


@pytest.mark.parametrize(("accuracy", "low", "high"), [(1.0, 0.892821, 1.0), (0.0, 0.0, 0.107179)])
def test_the_interval_of_a_perfect_accuracy_is_no_point(accuracy: float, low: float, high: float) -> None:
    quality = RewardQuality(accuracy, 0.0, 32, comparisons=96, training_comparisons=400, left_out_groups=0)
    assert quality.interval == pytest.approx((low, high), abs=1e-6)
    assert quality.metrics()["preference/heldout_accuracy_low"] == quality.interval[0]
    with pytest.raises(TetrarchError, match=r"95 % interval .*hold more pairs out"):
        check_quality(quality, 0.9)


def test_the_interval_is_that_of_as_many_independent_comparisons_as_the_error_says() -> None:
    """15 of 20, each copied four times or not: at both ends 0.75 is 1.96 of that end's own errors away."""
    for comparisons in (20, 80):
        error = (0.75 * 0.25 / 20) ** 0.5
        quality = RewardQuality(0.75, error, 20, comparisons, training_comparisons=400, left_out_groups=0)
        for end in quality.interval:
            assert abs(0.75 - end) == pytest.approx(1.959964 * (end * (1 - end) / 20) ** 0.5)
        assert quality.interval[0] < 0.75 < quality.interval[1]
