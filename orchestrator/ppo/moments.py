"""Number, mean and variance of numbers in several places: each place's flow in, those of all flow out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Self, TypeVar

import torch
from torch import Tensor

M = TypeVar("M")
SAME = 1e-24
"""Variance, as a share of the squared mean, below which numbers differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of some numbers: `Moments(3, mean=2.0, squares=2.0)` of 1, 2 and 3."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances from the mean."""

    @classmethod
    def of(cls, numbers: Tensor) -> Self:
        """Those of numbers of any shape."""
        if not numbers.numel():
            return cls()
        wide = numbers.double()
        mean = float(wide.mean())
        return cls(wide.numel(), mean, float((wide - mean).square().sum()))

    @classmethod
    def where(cls, numbers: Tensor, mask: Tensor) -> Self:
        """Those of the numbers where the mask, of the same shape, is True; the others may be anything."""
        wide = numbers.double()  # float32's rounding of the mean would become a deviation where all numbers are equal
        count = int(mask.sum())
        mean = float(torch.where(mask, wide, 0.0).sum() / max(count, 1))
        return cls(count, mean, float(torch.where(mask, wide - mean, 0.0).square().sum()))

    def __add__(self, other: Moments) -> Moments:
        """Those of both (Chan, Golub and LeVeque 1979, equation 2.1)."""
        total = self.count + other.count
        if not total:
            return self
        difference = other.mean - self.mean
        squares = self.squares + (other.squares + difference**2 * self.count * other.count / total)
        return Moments(total, self.mean + difference * other.count / total, squares)

    @property
    def variance(self) -> float:
        """The biased one; 0 of no number."""
        return self.squares / max(self.count, 1)

    @property
    def vary(self) -> bool:
        """Whether the numbers differ by more than rounding."""
        return self.variance > SAME * self.mean**2


def together(parts: Iterable[M]) -> M:
    """The sum of all parts, of which there is at least one."""
    return reduce(add, parts)
