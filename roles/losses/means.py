"""Means over the tokens or sequences of a whole optimizer step, as weights per token and a divisor. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from roles.config.losses import LossMean


def masked_mean_weight(mask: Tensor, mean: LossMean, constant: int = 1) -> Tensor:
    """Weights such that `sum(loss * weight) / denominator(mask of the whole step, mean)` is the mean of the loss.

    Args:
        mask: bool `[batch, time]`, True on the tokens that are trained on.
        mean: `token`: the mean over all tokens of the optimizer step. `sequence`: the mean over its sequences of each
            sequence's token mean. `constant`: the mean over its sequences of each sequence's token sum, divided by
            `constant` (Dr. GRPO; Liu et al., arXiv 2503.20783).

    Returns:
        float32 `[batch, time]`; 0 where the mask is False, so a row without a True has no weight.
    """
    weight = mask.to(torch.float32)
    if mean == "sequence":
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    return weight / constant if mean == "constant" else weight


def denominator(mask: Tensor, mean: LossMean) -> float:
    """The share of a bool mask `[batch, time]` in the divisor of the optimizer step: the number of its True positions
    for the mean `token`, else the number of its rows that have one."""
    return float(mask.sum() if mean == "token" else mask.any(-1).sum())


def sequence_mean(values: Tensor, sequences: Tensor) -> Tensor:
    """For each token, the mean of the values of its sequence.

    Args:
        values: float `[n]`, one value per token.
        sequences: int64 `[n]`: the row of each token.

    Returns:
        `[n]`, in the dtype of `values`.
    """
    sums = torch.zeros(int(sequences.max()) + 1, dtype=values.dtype, device=values.device)
    return (sums.index_add(0, sequences, values) / sequences.bincount().clamp(min=1))[sequences]
