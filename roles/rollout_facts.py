"""What the driver knows of rollouts that other processes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from roles.batch import Rollouts
from roles.rows import Batch


@dataclass(frozen=True, slots=True)
class RolloutFacts(Batch):
    """Of each row some small numbers.

    Example (of `Rollouts`):
        sizes     = [4, 5, 4]
        generated = [2, 4, 1]
        finished  = [1, 1, 0]
        versions  = [3, 3, 3]
        paid      = [0, 0, 0]
        counted   = [{}, {}, {}]
    """

    sizes: Tensor
    """int64 `[batch]`: prompt + response tokens, the `lengths` of the rows."""
    generated: Tensor
    """int64 `[batch]`: tokens that the policy generated."""
    finished: Tensor
    """bool `[batch]`."""
    versions: Tensor
    """int64 `[batch]`."""
    paid: Tensor
    """float32 `[batch]`: rewards of the environment, summed over the turns."""
    counted: list[dict[str, float]]

    @classmethod
    def of(cls, rollouts: Rollouts) -> Self:
        """Those of some rows."""
        paid = rollouts.turn_rewards.sum(1)
        return cls(rollouts.lengths, rollouts.generated, rollouts.finished, rollouts.versions, paid, rollouts.counted)

    def __post_init__(self) -> None:
        rows = {len(self.generated), len(self.finished), len(self.versions), len(self.paid), len(self.counted)}
        if rows != {len(self.sizes)} or self.sizes.dtype != torch.int64:
            raise ValueError(f"RolloutFacts: sizes has {len(self.sizes)} rows, another field a different number")
