"""What becomes of the reward model's scores before they are rewards: scale, clip, length. Pure but for `RunningScale`.

Called by `orchestrator.ppo` once a step; the state of the scale is in every checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrator.ppo_config import LinearLength, ScoreConfig, SoftOverlong

EPSILON = 1e-8


class RunningScale:
    """Mean and variance of all scores so far (Chan, Golub and LeVeque 1979, equation 2.1)."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def update(self, scores: Tensor) -> None:
        """Take in a batch of scores, float `[batch]`."""
        batch = scores.double()
        count, mean = len(batch), float(batch.mean())
        difference, total = mean - self._mean, self._count + count
        self._squares += float((batch - mean).square().sum()) + difference**2 * self._count * count / total
        self._mean += difference * count / total
        self._count = total

    def normalised(self, scores: Tensor) -> Tensor:
        """(score - mean) / standard deviation (biased); where nothing has varied yet, 0."""
        deviation = (self._squares / max(self._count, 1)) ** 0.5
        return ((scores.double() - self._mean) / (deviation + EPSILON)).to(scores.dtype)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._count, self._mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def shape_scores(scores: Tensor, response_lengths: Tensor, config: ScoreConfig, scale: RunningScale) -> Tensor:
    """Normalised by all scores so far (this batch's included), then clipped, then less the length penalty.

    Args:
        scores: float `[batch]`.
        response_lengths: int64 `[batch]`: generated tokens.
        scale: takes in this batch.

    Returns:
        `[batch]`.
    """
    scale.update(scores)
    shaped = scale.normalised(scores) if config.normalise else scores
    if config.clip is not None:
        shaped = shaped.clamp(-config.clip, config.clip)
    return shaped - length_penalty(response_lengths, config).to(scores.dtype)


def length_penalty(response_lengths: Tensor, config: ScoreConfig) -> Tensor:
    """float32 `[batch]`, 0 or more.

    `linear`: so much a token. `soft_overlong` (Yu et al., DAPO, arXiv 2503.14476, equation 13): 0 up to
    longest - buffer tokens, from there rising to `penalty` at `longest`.
    """
    lengths = response_lengths.float()
    match config.length:
        case LinearLength(per_token=per_token):
            return per_token * lengths
        case SoftOverlong(longest=longest, buffer=buffer, penalty=penalty):
            return penalty * ((lengths - (longest - buffer)) / buffer).clamp(0, 1)
        case _:
            return torch.zeros_like(lengths)
