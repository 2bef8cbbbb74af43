"""What an estimator costs: a variant with its facts, and a function. A step is trained with one that is added here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor

from orchestrator.config.advantages import Estimator, Gae
from orchestrator.config.ppo import PpoConfig
from orchestrator.ppo.advantages import ESTIMATORS
from tests.unit.orchestrator.ppo import test_train_step as steps


class Halfway(Estimator):
    """Less a mean of the group's mean and of the greedy response's score; with no formula that anyone should use."""

    type: Literal["halfway"]
    share: float = 0.5

    compares_responses: ClassVar = True
    needs_greedy: ClassVar = True


def halfway(rewards: Tensor, mask: Tensor, groups: Tensor, baselines: Tensor, share: float) -> Tensor:
    total = rewards.sum(1)
    mean = torch.stack([total[groups == group].mean() for group in groups])
    return torch.where(mask, (total - share * mean - (1 - share) * baselines).unsqueeze(1), 0.0)


class WithHalfway(PpoConfig):
    """The variant is named in the union."""

    advantage: Annotated[Gae | Halfway, Field(discriminator="type")] = Gae()  # type: ignore[assignment]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(ESTIMATORS, Halfway, halfway)
    monkeypatch.setattr(steps, "PpoConfig", WithHalfway)
    return steps.no_waiting(monkeypatch)


def trained_on(groups: dict[str, Any]) -> dict[int, float]:
    """Row → the advantage of its last token."""
    parts = [share.experience for share in groups["actor"].seen[-1]]
    return {int(part.token_ids[row, 0]): float(part.advantages[row, -1]) for part in parts for row in range(len(part))}


def test_a_step_is_trained_with_an_estimator_of_a_variant_and_a_function(log: list[str]) -> None:
    result, _, groups = steps.step(log, advantage={"type": "halfway", "share": 0.25})
    assert "start rollout.generate" in log, "no greedy responses, though the variant needs them"
    assert not [line for line in log if "critic" in line] and result.critic is None
    # No KL penalty: all log-probabilities are 0. A row's score is its number; rows 0 and 1 answer one prompt, 2 and
    # 3 another, and 0 and 2 are also the greedy responses. Nothing is whitened.
    assert trained_on(groups) == {0: -0.125, 1: 0.875, 2: -0.125, 3: 0.875}


def test_a_fact_of_the_variant_is_all_it_takes(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halfway, "whitens", True)
    _, _, groups = steps.step(log, advantage={"type": "halfway"})
    values = torch.tensor(list(trained_on(groups).values()))
    assert values.mean().abs() < 1e-6 and values.std(correction=0) == pytest.approx(1.0)
