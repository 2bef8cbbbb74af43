"""Losses and what they are made of. Pure: tensors in, tensors out.

Losses come out per token (or per pair), un-aggregated. The engines sum `loss * masked_mean_weight(mask, mean)` over
each micro-batch and divide by the `denominator` of the **whole optimizer step** over all ranks, so that the gradient
depends neither on the micro-batch size nor on the packing nor on the number of ranks.

Half-precision inputs are widened to float32; float32 and float64 stay as they are. Masked positions may hold anything
finite: their weight is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from roles.config.losses import LossMean

CHUNK = 1 << 22
"""Logits that are widened to float32 at a time: 16 MiB, however long the batch and large the vocabulary."""
LARGEST_LOG_RATIO = 20.0
"""exp(20) = 4.9e8 stands for any larger probability ratio: an infinite one would turn a zero advantage into NaN."""


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the labels.

    Keeps no float32 copy of the logits: they are widened in chunks of rows, and once more in the backward pass.

    Args:
        logits: `[n, vocab]`, any float type.
        labels: int64 `[n]`.

    Returns:
        `[n]`, at least float32.
    """
    out: Tensor = _TokenLogprobs.apply(logits, labels, temperature)
    return out


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of softmax(logits / temperature), `[n, vocab]` → `[n]`, at least float32.

    As lean as `token_logprobs`; differentiable.
    """
    out: Tensor = _Entropy.apply(logits, temperature)
    return out


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        normaliser = torch.empty(len(logits), dtype=_wide_type(logits), device=logits.device)
        picked = torch.empty_like(normaliser)
        for rows in _chunks(logits):
            scaled = _wide(logits[rows]) / temperature
            normaliser[rows] = scaled.logsumexp(-1)
            picked[rows] = scaled.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits, labels, normaliser)
        ctx.temperature = temperature
        return picked - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """d log p(label) / d logit_j = (1[j = label] - p_j) / temperature."""
        logits, labels, normaliser = ctx.saved_tensors
        out = torch.empty_like(logits)
        factor = grad / ctx.temperature
        for rows in _chunks(logits):
            slope = (_wide(logits[rows]) / ctx.temperature).sub_(normaliser[rows].unsqueeze(-1)).exp_()
            slope.mul_(-factor[rows].unsqueeze(-1))
            slope.scatter_add_(-1, labels[rows].unsqueeze(-1), factor[rows].unsqueeze(-1))
            out[rows] = slope.to(out.dtype)
        return out, None, None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        normaliser = torch.empty(len(logits), dtype=_wide_type(logits), device=logits.device)
        total = torch.empty_like(normaliser)
        for rows in _chunks(logits):
            scaled = _wide(logits[rows]) / temperature
            normaliser[rows] = scaled.logsumexp(-1)
            logprobs = finite_logprobs(scaled.sub_(normaliser[rows].unsqueeze(-1)))
            total[rows] = -torch.linalg.vecdot(logprobs.exp(), logprobs)
        ctx.save_for_backward(logits, normaliser, total)
        ctx.temperature = temperature
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """d H / d logit_j = -p_j (log p_j + H) / temperature."""
        logits, normaliser, total = ctx.saved_tensors
        out = torch.empty_like(logits)
        factor = grad / ctx.temperature
        for rows in _chunks(logits):
            logprobs = finite_logprobs((_wide(logits[rows]) / ctx.temperature).sub_(normaliser[rows].unsqueeze(-1)))
            slope = logprobs.exp().mul_(logprobs.add_(total[rows].unsqueeze(-1)))
            out[rows] = slope.mul_(-factor[rows].unsqueeze(-1)).to(out.dtype)
        return out, None


def finite_logprobs(logprobs: Tensor) -> Tensor:
    """In place: -inf becomes the lowest number, so that p·log p is 0 where p is."""
    return logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)


def masked_mean_weight(mask: Tensor, mean: LossMean, constant: int = 1) -> Tensor:
    """Weights with which `sum(loss * weight) / denominator(whole step's mask, mean)` is the wanted mean.

    Args:
        mask: bool `[batch, time]`, True on the tokens that are trained on.
        mean: `token`: over all tokens of the optimizer step; `sequence`: over its sequences of their token means;
            `constant`: over its sequences of their token sums, divided by `constant` (Liu et al., arXiv 2503.20783).

    Returns:
        float32 `[batch, time]`; 0 where the mask is False; a row without a token has no weight.
    """
    weight = mask.to(torch.float32)
    if mean == "sequence":
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    return weight / constant if mean == "constant" else weight


def denominator(mask: Tensor, mean: LossMean) -> float:
    """What one mask `[batch, time]` adds to the step's divisor: its True positions, or its rows that have one."""
    return float(mask.sum() if mean == "token" else mask.any(-1).sum())


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
    gain = _wide(advantages.detach())
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
    return -_wide(advantages.detach()) * held * _wide(logprobs), held != ratio


POLICY_LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "clipped": policy_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
"""By `ppo.policy.type`."""


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log π - log π_ref per token: unbiased for KL(π‖π_ref) on the policy's own samples; may be negative. No clamp.

    This and the other two: joschu.net/blog/kl-approx.html. Masked positions are computed like any other.
    """
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """½(log π - log π_ref)² per token: its gradient is an unbiased one of the **next token's** KL(π‖π_ref) given what
    came before; its value is biased. Over a response it leaves out what a token does to the KL of later ones (Tang and
    Munos, arXiv 2506.09477)."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π) per token: unbiased value, never negative; its gradient is KL(π_ref‖π)'s. No clamp."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By `ppo.kl.estimator`."""


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """Of each token's value `[n]`, the mean over its sequence (int64 `[n]`: which row it is in), `[n]`."""
    sums = torch.zeros(int(sequences.max()) + 1, dtype=values.dtype, device=values.device)
    return (sums.index_add(0, sequences, values) / sequences.bincount().clamp(min=1))[sequences]


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(π/π_old), held within ±`LARGEST_LOG_RATIO`."""
    return (_wide(logprobs) - _wide(old_logprobs)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """KL(π_old‖π) per token from tokens of π_old: `(r - 1) - log r`, r = π/π_old (joschu.net/blog/kl-approx.html)."""
    log_r = log_ratio(logprobs, old_logprobs)
    return log_r.expm1() - log_r


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """½·max((V - R)², (clip(V, V_old ± clip) - R)²) per token, as in OpenAI's baselines; `clip=None`: ½(V - R)².

    Args:
        values, old_values, returns: `[...]`, of one shape.

    Returns:
        loss, and a bool tensor: True where the clipped term is the larger one.
    """
    new, target = _wide(values), _wide(returns.detach())
    plain = (new - target).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    old = _wide(old_values.detach())
    bounded = (torch.clamp(new, old - clip, old + clip) - target).square()
    return 0.5 * torch.maximum(plain, bounded), bounded > plain


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) per pair `[pairs]` (Ouyang et al., arXiv 2203.02155, equation 1).

    The margin is Llama 2's (arXiv 2307.09288, equation 2).
    """
    return -F.logsigmoid(_wide(chosen) - _wide(rejected) - margin)


def _wide_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(_wide_type(x))


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK // max(1, logits.shape[-1]))
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]
