"""The final scores: the reward's raw scores are scaled and clipped, and lose the length penalty.

Everything is pure except `RunningScale`, whose state is in every checkpoint; it also normalises the critic's targets.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.config.ppo import PpoConfig
from orchestrator.config.scores import LinearLength, PenaliseTruncated, ScoreConfig, SoftOverlong
from orchestrator.ppo.moments import Moments
from roles.batch import Rollouts

SCORE_EPSILON = 1e-8


class RunningScale:
    """Mean and variance of all numbers so far."""

    def __init__(self) -> None:
        self._seen = Moments()

    def update(self, numbers: Tensor) -> None:
        """Add numbers, float `[n]`."""
        self.add(Moments.of(numbers))

    def add(self, numbers: Moments) -> None:
        """Add numbers by their moments."""
        self._seen += numbers

    @property
    def mean(self) -> float:
        """Mean of all numbers; 0 before the first one."""
        return self._seen.mean

    @property
    def deviation(self) -> float:
        """Standard deviation (biased); 1 before the first number."""
        return self._seen.variance**0.5 + SCORE_EPSILON if self._seen.count else 1.0

    def normalised(self, numbers: Tensor) -> Tensor:
        """(number - mean) / deviation; 0 while all numbers so far are equal."""
        return ((numbers.double() - self.mean) / self.deviation).to(numbers.dtype)

    def scaled(self, parts: Tensor) -> Tensor:
        """part / deviation, for parts of the numbers; 0 while all numbers so far are equal."""
        told = self.deviation > 2 * SCORE_EPSILON
        return (parts.double() / self.deviation).to(parts.dtype) if told else torch.zeros_like(parts)

    def restored(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        return (normalised.double() * self.deviation + self.mean).to(normalised.dtype)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return asdict(self._seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`."""
        self._seen = Moments(int(state["count"]), float(state["mean"]), float(state["squares"]))


class RowLengths(Protocol):
    """Rows of which only small numbers are read."""

    @property
    def generated(self) -> Tensor:
        """int64 `[batch]`: tokens that the policy generated."""

    @property
    def finished(self) -> Tensor:
        """bool `[batch]`: True if the response ended itself."""


def shape_scores(scores: Tensor, rows: RowLengths, ppo: PpoConfig, scale: RunningScale) -> Tensor:
    """The final scores: normalised by `scale`, clipped, minus the length penalty.

    With `truncated: {type: penalty}` a response without EOS gets that fixed score instead (the EOS trick of arXiv
    2403.17031).

    Args:
        scores: float `[batch]`.
        scale: statistics of all scores so far, including these.

    Returns:
        `[batch]`.
    """
    config = ppo.score
    shaped = scale.normalised(scores) if config.normalise else scores
    if config.clip is not None:
        shaped = shaped.clamp(-config.clip, config.clip)
    shaped = shaped - length_penalty(rows.generated, config).to(scores.dtype)
    if isinstance(ppo.truncated, PenaliseTruncated):
        shaped = torch.where(rows.finished, shaped, ppo.truncated.score)
    return shaped


def shape_turns(rollouts: Rollouts, ppo: PpoConfig, scale: RunningScale) -> Tensor:
    """What the environment paid for each turn in units of the final scores, float `[batch, time]`."""
    return scale.scaled(rollouts.turn_rewards) if ppo.score.normalise else rollouts.turn_rewards


def length_penalty(response_lengths: Tensor, config: ScoreConfig) -> Tensor:
    """Length penalty of each response, float32 `[batch]`, 0 or more.

    `linear`: a constant per token. `soft_overlong` (Yu et al., DAPO, arXiv 2503.14476, equation 13): 0 up to longest -
    buffer tokens, from there rising to `penalty` at `longest`.
    """
    lengths = response_lengths.float()
    match config.length:
        case LinearLength(per_token=per_token):
            return per_token * lengths
        case SoftOverlong(longest=longest, buffer=buffer, penalty=penalty):
            return penalty * ((lengths - (longest - buffer)) / buffer).clamp(0, 1)
        case _:
            return torch.zeros_like(lengths)
