"""Scale, clip and length penalty of the scores."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.config.ppo import PpoConfig
from orchestrator.config.scores import PenaliseTruncated, ScoreConfig
from orchestrator.groups.reward import combine
from orchestrator.ppo.scores import RunningScale, length_penalty, shape_scores
from roles.config.rewards import EnsembleReward, MeanScore

LENGTHS = torch.tensor([1, 40, 50, 60, 70])


@pytest.mark.parametrize("cuts", [[10], [1, 9], [3, 3, 4]])
def test_the_running_scale_is_that_of_all_scores_together(cuts: list[int]) -> None:
    scores = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 100
    scale = RunningScale()
    for part in scores.split(cuts):
        scale.update(part)
    expected = (scores - scores.mean()) / scores.std(correction=0)
    torch.testing.assert_close(scale.normalised(scores), expected)


def test_parts_of_scores_are_in_units_of_their_deviation() -> None:
    scale, turns = RunningScale(), torch.tensor([[3.0, 0.0, -1.5]])
    assert scale.scaled(turns).tolist() == turns.tolist(), "before the first number the deviation is 1"
    scale.update(torch.tensor([4.0, 4.0]))
    assert scale.scaled(turns).tolist() == [[0.0, 0.0, 0.0]], "equal scores are normalised to 0, and so are their parts"
    scale.update(torch.tensor([7.0, 1.0, 1.0, 7.0]))
    torch.testing.assert_close(scale.scaled(turns), turns / scale.deviation)


MEMBERS = {"reward.a": torch.tensor([1.0, 4.0]), "reward.b": torch.tensor([3.0, 0.0])}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"type": "mean"}, [2.0, 2.0]),
        ({"type": "worst"}, [1.0, 0.0]),
        ({"type": "mean_minus_std", "factor": 0.5}, [2.0 - 0.5 * 1.0, 2.0 - 0.5 * 2.0]),
        ({"type": "weighted", "weights": {"a": 2.0, "b": -1.0}}, [-1.0, 8.0]),
    ],
)
def test_what_an_ensemble_says(how: dict[str, Any], expected: list[float]) -> None:
    members = {name: {"type": "function", "path": "f.py"} for name in ("a", "b")}
    reward = EnsembleReward.model_validate({"type": "ensemble", "members": members, "combine": how})
    combined, apart = combine(MEMBERS, reward.combine)
    assert combined.tolist() == pytest.approx(expected) and apart.tolist() == [1.0, 2.0]


def test_one_scorer_alone_is_itself() -> None:
    combined, apart = combine({"reward": MEMBERS["reward.a"]}, MeanScore())
    assert combined.tolist() == [1.0, 4.0] and apart.tolist() == [0.0, 0.0]


def test_the_running_scale_survives_a_checkpoint() -> None:
    before, after = RunningScale(), RunningScale()
    before.update(torch.tensor([1.0, 2.0, 4.0]))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for scale in (before, after):
        scale.update(torch.tensor([8.0]))
    assert before.state_dict() == after.state_dict()


def shape(scores: torch.Tensor, lengths: torch.Tensor, ppo: PpoConfig) -> list[float]:
    """All responses have ended but the last."""
    scale = RunningScale()
    scale.update(scores)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    finished = torch.arange(len(scores)) < len(scores) - 1
    return shape_scores(scores, SimpleNamespace(generated=mask.sum(1), finished=finished), ppo, scale).tolist()


def make_ppo(**score: Any) -> PpoConfig:
    return PpoConfig.model_validate({"score": score})


def test_scores_that_are_all_alike_are_zero() -> None:
    assert shape(torch.full((3,), 7.0), LENGTHS[:3], make_ppo(normalise=True)) == [0, 0, 0]


def test_the_order_is_scale_then_clip_then_length_then_the_penalty_for_no_end() -> None:
    ppo = make_ppo(normalise=True, clip=1.0, length={"type": "linear", "per_token": 0.01})
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0])  # mean 2, deviation 4
    shaped = [-0.5 - 0.01, -0.5 - 0.4, -0.5 - 0.5, -0.5 - 0.6, 1.0 - 0.7]
    assert shape(scores, LENGTHS, ppo) == pytest.approx(shaped)
    cut = ppo.model_copy(update={"truncated": PenaliseTruncated(type="penalty", score=-3.0)})
    assert shape(scores, LENGTHS, cut) == pytest.approx([*shaped[:-1], -3.0])


def test_restored_is_the_inverse_of_normalised() -> None:
    scale, numbers = RunningScale(), torch.tensor([1.0, 2.0, 4.0])
    assert scale.restored(numbers).tolist() == numbers.tolist(), "before the first number"
    scale.update(numbers)
    torch.testing.assert_close(scale.restored(scale.normalised(numbers)), numbers)
    scale.update(torch.zeros(0))
    torch.testing.assert_close(scale.restored(scale.normalised(numbers)), numbers)


def test_soft_overlong_is_the_papers() -> None:
    config = ScoreConfig.model_validate(
        {"length": {"type": "soft_overlong", "longest": 60, "buffer": 20, "penalty": 2}}
    )
    assert length_penalty(LENGTHS, config).tolist() == [0, 0, 1, 2, 2]


def test_plain_scores_stay_as_they_are() -> None:
    scores = torch.tensor([1.0, -2.0])
    assert shape(scores, LENGTHS[:2], PpoConfig()) == scores.tolist()
