"""Which loss and rewards a configured loss of the DPO family gives, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from roles.config.preference_losses import PreferenceLossConfig
from roles.losses.preference_numbers import preference_losses
from roles.shares import PreferencePairs, ReferencedResponses

CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = -4.0, -9.0, -6.0, -6.0
TOKENS = (2, 3)
H, PER_TOKEN = (-4 + 6) - (-9 + 6), (-4 + 6) / 2 - (-9 + 6) / 3


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def odds(p: float) -> float:
    return p / (1 - p)


RATIO = odds(math.exp(-2)) / odds(math.exp(-3))


def loss_of(**said: Any) -> Any:
    return TypeAdapter(PreferenceLossConfig).validate_python(said)


@pytest.mark.parametrize(
    ("said", "loss", "rewards"),
    [
        ({"type": "sigmoid"}, softplus(-0.1 * H), (0.2, -0.3)),
        (
            {"type": "sigmoid", "beta": 0.5, "label_smoothing": 0.2},
            0.8 * softplus(-0.5 * H) + 0.2 * softplus(0.5 * H),
            (1.0, -1.5),
        ),
        ({"type": "robust"}, (0.9 * softplus(-0.1 * H) - 0.1 * softplus(0.1 * H)) / 0.8, (0.2, -0.3)),
        ({"type": "ipo", "beta": 0.5}, (PER_TOKEN - 1) ** 2, (0.5, -0.5)),
        ({"type": "hinge"}, 1 - 0.1 * H, (0.2, -0.3)),
        ({"type": "simpo", "target_margin": 0.5}, softplus(-(2 * (-2 + 3) - 0.5)), (-4.0, -6.0)),
        ({"type": "orpo", "weight": 0.5}, 2 + 0.5 * softplus(-math.log(RATIO)), (-1.0, -1.5)),
    ],
    ids=lambda said: "-".join(map(str, said.values())) if isinstance(said, dict) else "",
)
def test_the_loss_that_is_configured(said: dict[str, Any], loss: float, rewards: tuple[float, float]) -> None:
    logprobs, reference = torch.tensor([CHOSEN, REJECTED]), torch.tensor([REFERENCE_CHOSEN, REFERENCE_REJECTED])
    losses, found = preference_losses(loss_of(**said), logprobs, reference, torch.tensor(TOKENS))
    assert losses.tolist() == pytest.approx([loss], rel=1e-5)
    assert found.tolist() == pytest.approx(rewards, rel=1e-5)


def test_labels_are_more_often_right_than_wrong() -> None:
    with pytest.raises(ValidationError):
        loss_of(type="robust", label_smoothing=0.5)


def test_a_pair_has_two_sides() -> None:
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[False, True, True]] * 2)
    side = ReferencedResponses(ids, torch.tensor([3, 3]), mask, torch.zeros(2))
    rows = torch.arange(2)
    assert PreferencePairs(side, side, rows).select([1]).rows.tolist() == [1]
    with pytest.raises(ValueError, match="2 chosen responses beside 1 rejected"):
        PreferencePairs(side, side.select([0]), rows)
    with pytest.raises(ValueError, match="no trained token"):
        ReferencedResponses(ids, torch.tensor([3, 3]), torch.zeros_like(mask), torch.zeros(2))
