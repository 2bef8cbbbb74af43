"""Weights for what vLLM's distribution and the trainer's differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from roles.config.losses import PolicyLossConfig
from roles.losses.importance import IMPORTANCE, icepop, rejected_sequences, truncated_importance

OLD = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
ROLLOUT = torch.tensor([0.0, 1.0, -5.0, 0.05, -0.05])
ROWS = torch.tensor([0, 0, 1, 2, 2])
RATIO = [1.0, 0.3679, 148.4132, 0.9512, 1.0513]


def test_truncated_weights_are_capped() -> None:
    weight = truncated_importance(OLD, ROLLOUT, ROWS, cap=2.0)
    assert weight.tolist() == pytest.approx([min(r, 2.0) for r in RATIO], abs=1e-4)


def test_icepop_leaves_out_what_is_too_far() -> None:
    weight = icepop(OLD, ROLLOUT, ROWS, low=0.5, high=5.0)
    assert weight.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.9512, 1.0513], abs=1e-4)


def test_a_response_is_kept_or_rejected_as_a_whole() -> None:
    weight = rejected_sequences(OLD, ROLLOUT, ROWS, low=0.9, high=1.1)
    assert weight.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]  # geometric means 0.607, 148 and 1


@pytest.mark.parametrize("kind", IMPORTANCE)
def test_every_correction_has_a_variant_and_no_gradient(kind: str) -> None:
    config = PolicyLossConfig.model_validate({"importance": {"type": kind}}).importance
    weight = IMPORTANCE[kind](OLD, ROLLOUT, ROWS, **config.model_dump(exclude={"type"}))
    assert weight.shape == OLD.shape and not weight.requires_grad
    same = IMPORTANCE[kind](OLD, OLD, ROWS, **config.model_dump(exclude={"type"}))
    assert same.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "truncate",
    [
        pytest.param(lambda logits: logits.index_fill(-1, torch.tensor([0]), -torch.inf), id="EOS forbidden"),
        pytest.param(
            lambda logits: logits.masked_fill(logits < logits.topk(3).values[..., -1:], -torch.inf), id="top-k"
        ),
    ],
)
def test_weights_turn_a_truncated_distribution_into_the_actors(truncate: Callable[[Tensor], Tensor]) -> None:
    """Of the tokens that can be sampled: each weighs what of the actor's probability the truncation has left."""
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    old, sampled = logits.log_softmax(-1), truncate(logits).log_softmax(-1)
    kept = sampled > -torch.inf
    rows = torch.arange(6)[:, None].expand(6, 7)[kept]
    weight = truncated_importance(old[kept], sampled[kept], rows, cap=2.0)
    left = (old.exp() * kept).sum(-1, keepdim=True).expand(6, 7)[kept]
    assert torch.allclose(weight, left)
    assert torch.allclose(weight * sampled.exp()[kept], old.exp()[kept]), "the mean over samples is the actor's"
