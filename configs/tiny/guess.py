"""A conversation that a small model learns in minutes: guess a number, with a calculator for the middle of the rest.

A turn of the policy is one character. `=` asks the calculator, a digit is a guess.
"""

from __future__ import annotations

import random
import string
from typing import Any

CALCULATED, WRONG, UNREADABLE = -0.05, -0.2, -0.3
Messages = list[dict[str, Any]]


class Env:
    """One game: a number between the columns `low` and `high`, both included, drawn with the seed."""

    def reset(self, columns: dict[str, Any], seed: int) -> Messages:
        """Where the number is."""
        self._low, self._high = columns["low"], columns["high"]
        self._number = random.Random(seed).randint(self._low, self._high)
        return self._say(f"{self._low}{self._high}")

    def step(self, response: str) -> tuple[Messages | None, float]:
        """The middle, for little; or that a guess is right (1), or for more what it leaves; the rest costs most."""
        if response == "=":
            return self._say(str((self._low + self._high) // 2)), CALCULATED
        if len(response) != 1 or response not in string.digits:
            return self._say("?"), UNREADABLE
        guess = int(response)
        if guess == self._number:
            return None, 1.0
        if self._low <= guess < self._number:
            self._low = guess + 1
        if self._number < guess <= self._high:
            self._high = guess - 1
        return self._say(f"{self._low}{self._high}"), WRONG

    def _say(self, content: str) -> Messages:
        return [{"role": "user", "content": content}]
