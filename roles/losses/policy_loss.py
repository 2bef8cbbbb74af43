"""Policy losses, one number per token. Pure: tensors flow in, tensors flow out.

The actor sums `loss * masked_mean_weight(mask, mean)` over each micro-batch and divides by the `denominator` of the
**whole optimizer step** over all ranks. The gradient then depends neither on the micro-batch size nor on the packing
nor on the number of ranks.

Half-precision inputs are widened to float32; float32 and float64 stay as they are. Masked positions may hold any finite
number, because their weight is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from roles.losses.logprobs import wide
from roles.losses.means import sequence_mean

LARGEST_LOG_RATIO = 20.0
"""Larger logarithms of probability ratios are clamped to it: an infinite ratio would turn a zero advantage into NaN."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    sequences: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate (Schulman et al., arXiv 1707.06347, equation 7), negated, per token.

    `max(-A·r, -A·clip(r, 1 - clip_low, 1 + clip_high))` with `r = π/π_old`. With `dual_clip = c` it is at most `-A·c`
    where A < 0 (Ye et al., arXiv 1912.09729, equation 5). The gradient flows through `logprobs` alone.

    Args:
        logprobs, old_logprobs: float `[...]`, in nats. Masked positions are computed like any other.
        advantages: float `[...]`, in units of the reward.
        clip_low, clip_high: how far below and above 1 the ratio counts.
        dual_clip: bound c, above 1; None for no bound.
        sequences: not used here; other losses need the row of each token.

    Returns:
        Two tensors of the same shape: the loss, at least float32, and a bool that is True where the clipped term is the
        larger one (its gradient is 0).
    """
    ratio = log_ratio(logprobs, old_logprobs.detach()).exp()
    gain = wide(advantages.detach())
    plain = -gain * ratio
    bounded = -gain * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(plain, bounded)
    if dual_clip is not None:
        loss = torch.where(gain < 0, torch.minimum(loss, -gain * dual_clip), loss)
    return loss, bounded > plain


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    sequences: Tensor,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Group sequence policy optimization (Zheng et al., arXiv 2507.18071, equations 7 and 17), negated, per token.

    The clipped surrogate with one ratio per sequence: the geometric mean of the ratios of its tokens. The gradient
    flows through each token's own log-probability. The paper clips at about 1e-4 and uses `mean: sequence`.

    Args:
        logprobs, old_logprobs: float `[n]`, in nats: the trained tokens, row after row.
        advantages: float `[n]`, in units of the reward.
        clip_low, clip_high: how far below and above 1 the ratio of a sequence counts.
        sequences: int64 `[n]`: the row of each token.
        dual_clip: not used here.

    Returns:
        See `policy_loss`.
    """
    token_ratio = log_ratio(logprobs, old_logprobs.detach())
    own = sequence_mean(token_ratio.detach(), sequences) + (token_ratio - token_ratio.detach())
    return policy_loss(own, torch.zeros_like(own), advantages, clip_low=clip_low, clip_high=clip_high)


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    sequences: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped importance-sampling weights (MiniMax-M1, arXiv 2506.13585, equation 4), negated, per token.

    `-A·log π` times the ratio π/π_old, which is clamped to 1 - clip_low … 1 + clip_high and carries no gradient. A
    token with a clamped ratio is therefore still trained on.

    Args:
        logprobs, old_logprobs: float `[...]`, in nats.
        advantages: float `[...]`, in units of the reward.
        clip_low, clip_high: how far below and above 1 the ratio counts.
        dual_clip, sequences: not used here.

    Returns:
        Two tensors of the same shape: the loss, at least float32, and a bool that is True where the ratio was clamped.
    """
    ratio = log_ratio(logprobs.detach(), old_logprobs.detach()).exp()
    held = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -wide(advantages.detach()) * held * wide(logprobs), held != ratio


POLICY_LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "clipped": policy_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
"""`ppo.policy.type` → function."""


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(π/π_old) per token, clamped to ±`LARGEST_LOG_RATIO`: two float tensors of one shape, in nats, flow in; one of
    that shape, at least float32, flows out."""
    return (wide(logprobs) - wide(old_logprobs)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Estimate of KL(π_old‖π) in nats per token, from tokens sampled from π_old: `(r - 1) - log r` with r = π/π_old (k3
    of joschu.net/blog/kl-approx.html). Shapes and dtypes: see `log_ratio`."""
    log_r = log_ratio(logprobs, old_logprobs)
    return log_r.expm1() - log_r
