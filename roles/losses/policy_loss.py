"""Losses and what they are made of. Pure: tensors in, tensors out.

Losses come out per token (or per pair), un-aggregated. The engines sum `loss * masked_mean_weight(mask, mean)` over
each micro-batch and divide by the `denominator` of the **whole optimizer step** over all ranks, so that the gradient
depends neither on the micro-batch size nor on the packing nor on the number of ranks.

Half-precision inputs are widened to float32; float32 and float64 stay as they are. Masked positions may hold anything
finite: their weight is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from roles.losses.logprobs import wide
from roles.losses.means import sequence_mean

LARGEST_LOG_RATIO = 20.0
"""exp(20) = 4.9e8 stands for any larger probability ratio: an infinite one would turn a zero advantage into NaN."""


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

    `max(-A·r, -A·clip(r, 1 - clip_low, 1 + clip_high))` with `r = π/π_old`; with `dual_clip = c` at most `-A·c`
    where A < 0 (Ye et al., arXiv 1912.09729, equation 5). The gradient flows through `logprobs` alone.

    Args:
        logprobs, old_logprobs, advantages: `[...]`, of one shape. Masked positions are computed like any other.
        sequences: not read; of the losses that look at whole sequences.

    Returns:
        loss, and a bool tensor: True where the clipped term is the larger one (where its gradient is 0).
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

    As `policy_loss`, with one ratio a sequence: the geometric mean of its tokens' ratios. The token's own
    log-probability carries the gradient. Their clips are some 1e-4, and they take `mean: sequence`.

    Args:
        logprobs, old_logprobs, advantages: `[n]`: the trained tokens, row after row.
        sequences: int64 `[n]`: which row each of them is in.
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

    `-A·log π` times the ratio, held within 1 - clip_low … 1 + clip_high and without gradient: a clipped token still
    teaches. The bool tensor is True where the ratio was held.

    Args:
        logprobs, old_logprobs, advantages: `[...]`, of one shape.
    """
    ratio = log_ratio(logprobs.detach(), old_logprobs.detach()).exp()
    held = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -wide(advantages.detach()) * held * wide(logprobs), held != ratio


POLICY_LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "clipped": policy_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
"""By `ppo.policy.type`."""


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(π/π_old), held within ±`LARGEST_LOG_RATIO`."""
    return (wide(logprobs) - wide(old_logprobs)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """KL(π_old‖π) per token from tokens of π_old: `(r - 1) - log r`, r = π/π_old (joschu.net/blog/kl-approx.html)."""
    log_r = log_ratio(logprobs, old_logprobs)
    return log_r.expm1() - log_r
