"""The order in which a run learns from its data: item numbers flow in, those of each optimizer step flow out. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from roles.seeds import stable_seed


class EndlessOrder:
    """An endless sequence of the numbers 0 … `size` - 1: each pass is a new permutation; the position can be saved."""

    def __init__(self, size: int, seed: tuple[int, str]) -> None:
        """`seed`: the run's seed, and a word for what the numbers are."""
        self._size, self._seed = size, seed
        self._pass = self._position = 0
        self._order = self._permutation()

    def next(self, count: int) -> list[int]:
        """The next `count` numbers."""
        return [self._advance() for _ in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values for a checkpoint."""
        return {"pass": self._pass, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position `state`."""
        self._pass, self._position = state["pass"], state["position"]
        self._order = self._permutation()

    def _advance(self) -> int:
        if self._position == len(self._order):
            self._pass, self._position = self._pass + 1, 0
            self._order = self._permutation()
        self._position += 1
        return self._order[self._position - 1]

    def _permutation(self) -> list[int]:
        order = list(range(self._size))
        random.Random(stable_seed(*self._seed, self._pass)).shuffle(order)
        return order


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
