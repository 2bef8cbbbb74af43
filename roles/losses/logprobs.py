"""Log-probabilities and entropies of tokens from logits, in chunks of the vocabulary's width. Pure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 22
"""Logits that are widened to float32 at a time: 16 MiB, however long the batch and large the vocabulary."""


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
    """In place: -inf becomes the lowest number, so that p·log p is 0 where p is."""
    return logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)


def wide_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    return x.to(wide_type(x))


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK // max(1, logits.shape[-1]))
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]
