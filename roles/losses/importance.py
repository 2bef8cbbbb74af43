"""What is done about vLLM's distribution differing from the trainer's: weights for the policy loss. Pure.

Log-probabilities of the same tokens from both flow in, a weight a token flows out. Called by `roles.actor`. To add a
correction: one function, one line in `IMPORTANCE`, one variant in `roles.config.models`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from roles.losses.means import sequence_mean
from roles.losses.policy_loss import log_ratio


def no_correction(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor) -> Tensor:
    """1 for every token."""
    return torch.ones_like(old_logprobs)


def truncated_importance(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, cap: float) -> Tensor:
    """min(cap, π_old/π_rollout) per token: truncated importance sampling (Yao et al. 2025,
    fengyao.notion.site/off-policy-rl).

    Args:
        old_logprobs: float `[n]`: the trainer's, of the sampled tokens.
        rollout_logprobs: float `[n]`: vLLM's.
        sequences: int64 `[n]`, not read.

    Returns:
        `[n]`, without gradient.
    """
    return _ratio(old_logprobs, rollout_logprobs).clamp(max=cap)


def icepop(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, low: float, high: float) -> Tensor:
    """π_old/π_rollout where it is within low … high, else 0: such a token does not teach (Ring-1T, arXiv 2510.18855,
    equation 3). Arguments as for `truncated_importance`."""
    ratio = _ratio(old_logprobs, rollout_logprobs)
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def rejected_sequences(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, low: float, high: float
) -> Tensor:
    """1 for the tokens of a sequence whose geometric mean of π_old/π_rollout is within low … high, else 0.

    Args:
        old_logprobs, rollout_logprobs: as for `truncated_importance`.
        sequences: int64 `[n]`: which row each token is in.
    """
    mean = sequence_mean(log_ratio(old_logprobs.detach(), rollout_logprobs.detach()), sequences).exp()
    return ((mean >= low) & (mean <= high)).to(mean.dtype)


def _ratio(old_logprobs: Tensor, rollout_logprobs: Tensor) -> Tensor:
    return log_ratio(old_logprobs.detach(), rollout_logprobs.detach()).exp()


IMPORTANCE: dict[str, Callable[..., Tensor]] = {
    "none": no_correction,
    "truncated": truncated_importance,
    "icepop": icepop,
    "reject": rejected_sequences,
}
"""By `ppo.policy.importance.type`; called with the variant's other fields by name."""
