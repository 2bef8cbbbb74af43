"""Means over tokens or sequences of a whole optimizer step, as weights of tokens. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from roles.config.losses import LossMean


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


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """Of each token's value `[n]`, the mean over its sequence (int64 `[n]`: which row it is in), `[n]`."""
    sums = torch.zeros(int(sequences.max()) + 1, dtype=values.dtype, device=values.device)
    return (sums.index_add(0, sequences, values) / sequences.bincount().clamp(min=1))[sequences]
