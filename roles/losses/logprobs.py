"""Log-probabilities and entropies of tokens from logits, computed in chunks of rows to save memory. Pure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 22
"""Number of logits that are widened to float32 at a time: 16 MiB for every batch length and vocabulary."""


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the labels, in nats. Differentiable in `logits`.

    Keeps no float32 copy of the logits: they are widened in chunks of rows, and again in the backward pass.

    Args:
        logits: `[n, vocab]`, any float dtype.
        labels: int64 `[n]`, token ids.
        temperature: divides the logits, above 0.

    Returns:
        `[n]`, at least float32.
    """
    out: Tensor = _TokenLogprobs.apply(logits, labels, temperature)
    return out


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy of softmax(logits / temperature), in nats. Differentiable in `logits`; needs as little memory as
    `token_logprobs`.

    Args:
        logits: `[n, vocab]`, any float dtype.
        temperature: divides the logits, above 0.

    Returns:
        `[n]`, at least float32.
    """
    out: Tensor = _Entropy.apply(logits, temperature)
    return out


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        normaliser = torch.empty(len(logits), dtype=wide_type(logits), device=logits.device)
        picked = torch.empty_like(normaliser)
        for rows in _chunks(logits):
            scaled = wide(logits[rows]) / temperature
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
            slope = (wide(logits[rows]) / ctx.temperature).sub_(normaliser[rows].unsqueeze(-1)).exp_()
            slope.mul_(-factor[rows].unsqueeze(-1))
            slope.scatter_add_(-1, labels[rows].unsqueeze(-1), factor[rows].unsqueeze(-1))
            out[rows] = slope.to(out.dtype)
        return out, None, None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        normaliser = torch.empty(len(logits), dtype=wide_type(logits), device=logits.device)
        total = torch.empty_like(normaliser)
        for rows in _chunks(logits):
            scaled = wide(logits[rows]) / temperature
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
            logprobs = finite_logprobs((wide(logits[rows]) / ctx.temperature).sub_(normaliser[rows].unsqueeze(-1)))
            slope = logprobs.exp().mul_(logprobs.add_(total[rows].unsqueeze(-1)))
            out[rows] = slope.mul_(-factor[rows].unsqueeze(-1)).to(out.dtype)
        return out, None


def finite_logprobs(logprobs: Tensor) -> Tensor:
    """Replace -inf by the lowest finite number, in place, so that p·log p is 0 where p is 0. Any shape, float dtype."""
    return logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)


def wide_type(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for every narrower dtype."""
    return torch.promote_types(x.dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The same numbers in `wide_type(x)`. Any shape; no copy if the dtype is wide already."""
    return x.to(wide_type(x))


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK // max(1, logits.shape[-1]))
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]
