"""How the scores of the same responses change when the reward model is retrained. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roles.measured import metric


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """Scores before and after. Example: from [0, 1, 2] to [1, 1, 4] the mean rises by 1, and the ranks correlate with
    0.87."""

    mean_before: float = metric("retraining/pinned_mean_before")
    mean: float = metric("retraining/pinned_mean")
    std_before: float = metric("retraining/pinned_std_before")
    """Biased, as `std` is."""
    std: float = metric("retraining/pinned_std")
    rank_correlation: float | None = metric("retraining/pinned_rank_correlation")
    """None if all scores are equal, before or after."""

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> ScoreChange:
        """The change from `before` to `after`, float `[responses]` each."""
        ranks = torch.stack([average_ranks(before), average_ranks(after)])
        centred = ranks - ranks.mean(1, keepdim=True)
        sizes = centred.square().sum(1)
        product = float(sizes.prod()) ** 0.5
        means, stds = (
            [float(getattr(scores.double(), name)(**options)) for scores in (before, after)]
            for name, options in (("mean", {}), ("std", {"correction": 0}))
        )
        correlation = float((centred[0] * centred[1]).sum()) / product if product else None
        return cls(means[0], means[1], stds[0], stds[1], correlation)


def average_ranks(values: Tensor) -> Tensor:
    """float64 `[n]`: the rank of each value from 0 on; equal values share the mean of their ranks (Spearman's)."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    return (first + (counts - 1) / 2).double()[places]
