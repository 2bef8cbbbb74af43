"""The actor's update on a rank that has fewer micro-batches than its peers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from roles.actor import Actor, LossExtra
from roles.config.losses import PolicyLossConfig
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.losses.policy_loss import POLICY_LOSSES
from roles.models.early_end import ANY_TIME
from roles.shares import ActorExperience, RankShare
from roles.zero.work import StepFacts, Term

NO_ROWS = ActorExperience(
    token_ids=torch.zeros(0, 2, dtype=torch.long),
    lengths=torch.zeros(0, dtype=torch.long),
    response_mask=torch.zeros(0, 2, dtype=torch.bool),
    rows=torch.zeros(0, dtype=torch.long),
    **{name: torch.zeros(0, 2) for name in ("old_logprobs", "rollout_logprobs", "reference_logprobs", "advantages")},
)


class CertainModel:
    """A model for which no token but the likeliest is possible, with one parameter; the peers have a micro-batch."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weight = torch.tensor([-1000.0], requires_grad=True)
        self.losses: list[float] = []

    def __call__(self, *, positions: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        return self.weight.expand(len(positions)), self.weight.expand(len(positions)) * 0

    def train(self, *terms: Term) -> list[StepFacts]:
        loss = sum(term.loss(0, []) for term in terms)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        self.losses.append(float(loss.detach()))
        return [StepFacts(0.0, 0.0)]

    def total(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("kind", POLICY_LOSSES)
def test_a_stand_in_without_rows_adds_nothing_however_unlikely_its_token(kind: Any, estimator: str) -> None:
    model: Any = CertainModel()
    actor = object.__new__(Actor)
    actor._model, actor._loss, actor._early_end = model, PolicyLossConfig(type=kind), ANY_TIME
    actor._extra, actor._temperature = LossExtra(kl_estimator=estimator), 1.0
    stats = actor.update(RankShare(NO_ROWS, [[]]), 0.1)
    assert model.losses == [0.0] and model.weight.grad.tolist() == [0.0]
    assert (stats.loss, stats.approx_kl, stats.entropy) == (0.0, 0.0, 0.0)
