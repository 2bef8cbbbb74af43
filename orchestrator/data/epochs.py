"""The order in which a stage learns from its data: item numbers flow in, those of each optimizer step flow out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from roles.seeds import stable_seed


def schedule_of(items: Sequence[int], per_step: int, epochs: int, seed: tuple[int, str]) -> list[list[int]]:
    """The items of each optimizer step: a fresh permutation in each epoch, whose last step may have fewer than
    `per_step`.

    Args:
        seed: the run's seed, and a word for what the items are.
    """
    steps = []
    for epoch in range(epochs):
        order = list(items)
        random.Random(stable_seed(*seed, epoch)).shuffle(order)
        steps += [order[first : first + per_step] for first in range(0, len(order), per_step)]
    return steps
