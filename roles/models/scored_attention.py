"""Attention whose scores are changed before or in the softmax: Gemma 2's soft cap, gpt-oss's sinks.

Padded queries, keys and values flow in, the attention of each query over its sequence up to itself flows out. The
scores of one block of queries are held at a time, in float32, and are computed again in the backward pass: PyTorch's
fused kernels have neither a cap nor a sink.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 1 << 24
"""Scores that are held at a time: 64 MiB in float32."""


def scored_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of padded `[sequences, heads, longest, dim]`; `key` and `value` may have fewer heads.

    Args:
        softcap: a score s becomes softcap · tanh(s / softcap) (Gemma 2, arXiv 2408.00118, section 2).
        sinks: `[heads]`, one more score for each query, whose share of the softmax goes nowhere (gpt-oss).
    """
    sequences, heads, longest, dim = query.shape
    scale = dim**-0.5 if scaling is None else scaling
    # A copy: under ZeRO-3 the parameter is there during the layer's forward and backward pass only.
    column = None if sinks is None else sinks.to(torch.float32, copy=True)
    size = max(BLOCK // (sequences * heads * longest), 1)
    parts = []
    for first in range(0, longest, size):
        last = min(first + size, longest)
        inputs = (query[:, :, first:last], key[:, :, :last], value[:, :, :last], first, scale, window, softcap, column)
        parts.append(checkpoint(_block, *inputs, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, 2)


def _block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    first: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The queries from position `first` on, over the keys up to the last of them."""
    sequences, heads, rows, _ = query.shape
    key_heads, columns = key.shape[1:3]
    grouped = query.reshape(sequences * key_heads, heads // key_heads * rows, -1)
    scores = torch.bmm(grouped, key.flatten(0, 1).transpose(1, 2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(sequences, heads, rows, columns)
    distance = torch.arange(first, first + rows, device=query.device)[:, None] - torch.arange(
        columns, device=query.device
    )
    unseen = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(unseen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, heads, 1, 1).expand(sequences, -1, rows, 1)], -1)
    shares = scores.softmax(-1)[..., :columns].to(value.dtype)
    output = torch.bmm(shares.reshape(sequences * key_heads, -1, columns), value.flatten(0, 1))
    return output.view(sequences, heads, rows, -1)
