"""The environment of `test_conversation.py`, and all that its soft dynamic programming must know.

A walk over three places. The policy is told where it is and says up to two letters: each `a` to `c` that belongs to
the place pays, and the first one says where the walk leads, mostly.
"""

from __future__ import annotations

import random
from typing import Any

PLACES = "xyz"
LETTERS = "abcdefghi"
TURNS = 3
PAY = {"x": {"a": 0.3}, "y": {"b": 0.5}, "z": {"c": 0.9, "a": 0.2}}
LEADS = {"a": "z", "b": "x", "c": "y"}
SURE = 0.7
"""Chance to get where the first letter leads; else, and after any other letter, every place is as likely."""


def pay(place: str, letters: list[str]) -> float:
    """For one turn."""
    return sum(PAY[place].get(letter, 0.0) for letter in letters)


def leads(letters: list[str]) -> dict[str, float]:
    """Next place → its probability."""
    target = LEADS.get(letters[0]) if letters else None
    sure = SURE if target else 0.0
    return {place: (1 - sure) / len(PLACES) + sure * (place == target) for place in PLACES}


class Env:
    """One walk."""

    def reset(self, columns: dict[str, Any], seed: int) -> list[dict[str, str]]:
        self._random, self._turn = random.Random(seed), 0
        return self._go({place: 1 / len(PLACES) for place in PLACES})

    def step(self, response: str) -> tuple[list[dict[str, str]] | None, float]:
        letters, here = response.split(), self._place
        self._turn += 1
        following = None if self._turn == TURNS else self._go(leads(letters))
        return following, pay(here, letters)

    def _go(self, chances: dict[str, float]) -> list[dict[str, str]]:
        (self._place,) = self._random.choices(list(chances), list(chances.values()))
        return [{"role": "user", "content": self._place}]
