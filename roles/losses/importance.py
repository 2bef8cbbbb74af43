"""Corrections for the difference between vLLM's distribution and the trainer's, as weights of the policy loss. Pure.

Log-probabilities of the same tokens from both flow in, one weight per token flows out, without gradient. To add a
correction: one function, one line in `IMPORTANCE`, one variant in `roles.config.losses`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from roles.losses.means import sequence_mean
from roles.losses.policy_loss import log_ratio


def no_correction(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor) -> Tensor:
    """The weight 1 for every token, `[n]`. Arguments: see `truncated_importance`."""
    return torch.ones_like(old_logprobs)


def truncated_importance(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, cap: float) -> Tensor:
    """min(cap, π_old/π_rollout) per token: truncated importance sampling (Yao et al. 2025,
    fengyao.notion.site/off-policy-rl).

    Args:
        old_logprobs: float `[n]`, in nats: the trainer's log-probabilities of the sampled tokens.
        rollout_logprobs: float `[n]`, in nats: vLLM's log-probabilities of the same tokens.
        sequences: int64 `[n]`: the row of each token (not used here).
        cap: largest weight, above 0.

    Returns:
        `[n]`, at least float32, without gradient.
    """
    return _ratio(old_logprobs, rollout_logprobs).clamp(max=cap)


def icepop(old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, low: float, high: float) -> Tensor:
    """π_old/π_rollout per token where it is within low … high, else 0, so that the token is not trained on (Ring-1T,
    arXiv 2510.18855, equation 3). Arguments and result: see `truncated_importance`."""
    ratio = _ratio(old_logprobs, rollout_logprobs)
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)


def rejected_sequences(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Tensor, *, low: float, high: float
) -> Tensor:
    """1 for all tokens of a sequence whose geometric mean of π_old/π_rollout is within low … high, 0 for the others.

    Arguments and result: see `truncated_importance`; `sequences` says which tokens belong together.
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
"""`ppo.policy.importance.type` → function; the variant's other fields are its keyword arguments."""
