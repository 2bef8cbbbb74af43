"""The environment of `test_conversation.py`, and all that its soft dynamic programming must know.

A walk over three places, which begins anywhere. The policy is told where it is and says a letter or more: each `a`
to `c` that belongs to the place pays, and the first letter says where the walk leads.
"""

from __future__ import annotations

import random
from typing import Any

PLACES = "xyz"
LETTERS = "abcdefghi"
TURNS = 4
PAY = {"x": {"a": 0.3}, "y": {"b": 0.5}, "z": {"c": 0.9, "a": 0.2}}
LEADS = {"a": "z", "b": "x", "c": "y"}


def pay(place: str, letters: list[str]) -> float:
    """For one turn."""
    return sum(PAY[place].get(letter, 0.0) for letter in letters)


def leads(place: str, letters: list[str]) -> str:
    """The next place; most letters lead nowhere."""
    return LEADS.get(letters[0], place) if letters else place


class Env:
    """One walk."""

    def reset(self, columns: dict[str, Any], seed: int) -> list[dict[str, str]]:
        self._place, self._turn = random.Random(seed).choice(PLACES), 0
        return self._say()

    def step(self, response: str) -> tuple[list[dict[str, str]] | None, float]:
        letters, here = response.split(), self._place
        self._place, self._turn = leads(here, letters), self._turn + 1
        return (None if self._turn == TURNS else self._say()), pay(here, letters)

    def _say(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self._place}]
