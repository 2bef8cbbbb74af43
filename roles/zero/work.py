"""What a sharded model is given to train on, and what it tells of each optimizer step. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """One optimizer step, as one rank sees it."""

    lengths: Sequence[int]
    """Tokens of each of this rank's items (a sequence, or a pair of sequences); an item is never cut."""
    denominator: float
    """This rank's share of the divisor of the step's summed loss."""


@dataclass(frozen=True, slots=True)
class Term:
    """One mean in the loss of optimizer steps, over items of its own. Its micro-batches have no other items."""

    work: Sequence[Work]
    """For each optimizer step; every rank, and every term of a loss, must have the same number."""
    loss: Callable[[int, list[int]], Tensor]
    """(step, items) → the sum of their weighted losses, a scalar with a gradient. It is divided by the denominator of
    the whole step over all ranks, so the gradient depends neither on micro-batches nor on the number of ranks. For an
    empty list it must give a 0 that was computed in the same way: with other modules in the backward pass a rank would
    gather and reduce in another order than its peers, and hang."""
    coefficient: float = 1.0
    """Factor of the mean."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """Facts about one optimizer step."""

    gradient_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    """Learning rate of the step."""
