"""Which engine answers which rows of a batch. Pure.

Each engine has a share of the rows. As long as all engines work, a share is one assignment, that of its engine. The
rows of an engine that is down, or that fails before it has answered them, are divided over the others.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

SUSPECTS = 4
"""Most prompts that are told as the possible reason of failures."""
SUSPECT_CHARACTERS = 100
"""Of a prompt that is told."""


@dataclass(slots=True, eq=False)
class Assignment:
    """Rows of one share that one call answers."""

    share: int
    """Number of the engine to which the rows belong."""
    rows: Sequence[int]
    """Numbers within the share."""
    engine: int
    """Number of the engine that answers them."""
    rank: Any = None
    """The engine's rank at the time of the call: another one has no part in it."""
    left: set[int] = field(default_factory=set)
    """Rows that are not answered yet."""

    def __post_init__(self) -> None:
        self.left = set(self.rows)

    def answered(self, first: int, size: int) -> range:
        """Note that `size` neighbouring rows from the assignment's row number `first` on are answered; returns their
        numbers within the share."""
        rows = self.rows[first : first + size]
        assert rows[-1] - rows[0] == size - 1, "an engine has answered rows together that do not belong together"
        self.left.difference_update(rows)
        return range(rows[0], rows[0] + size)


@dataclass(slots=True)
class Unanswered:
    """The rows that engines had not answered when they failed: one that is there at failure after failure may be the
    reason."""

    failures: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(share, row) → number of failures."""

    def note(self, failed: Iterable[Assignment]) -> None:
        """Note the assignments of engines that have failed."""
        self.failures.update((given.share, row) for given in failed for row in given.left)

    def told(self, texts: Callable[[int, int], str]) -> str:
        """For the user, what is suspected; nothing if that may be any of many rows, or no row at all. `texts`: (share,
        row) → prompt."""
        most = max(self.failures.values(), default=0)
        rows = [row for row, count in self.failures.items() if count == most]
        if most < 2 or len(rows) > SUSPECTS or len(rows) == len(self.failures):  # then any row may be, or none
            return ""
        shown = ", ".join(repr(shorten(texts(*row), SUSPECT_CHARACTERS, placeholder=" …")) for row in rows)
        one = len(rows) == 1
        return (
            f"\nAt {most} failures an engine had not answered {'this prompt' if one else 'these prompts'}: {shown}. If "
            f"{'it is' if one else 'one of them is'} the reason, every engine fails with it: leave it out of the data"
        )


def home_assignments(sizes: Sequence[int], usable: Sequence[int], unit: int | None) -> list[Assignment]:
    """The assignments of all shares, whose numbers of rows are `sizes`."""
    assignments, at_home = list[Assignment](), set(usable)
    for share, size in enumerate(sizes):
        away = share not in at_home
        others = assignments if away else ()
        assignments += divided(share, range(size), usable if away else [share], unit, others)
    return assignments


def divided(
    share: int, rows: Sequence[int], engines: Sequence[int], unit: int | None, others: Sequence[Assignment] = ()
) -> list[Assignment]:
    """Assignments of some rows of a share, one for each of `engines` if there are enough rows.

    `unit`: number of rows, counted from the beginning of the share, that stay together; None: all of them. `others`:
    assignments that the engines have got already; those with the fewest rows come first.
    """
    units = [list(own) for _, own in itertools.groupby(rows, lambda row: row // unit if unit else 0)]
    busy = {engine: sum(len(given.left) for given in others if given.engine == engine) for engine in engines}
    chosen = sorted(engines, key=lambda engine: (busy[engine], engine))[: len(units)]
    return [
        Assignment(share, [row for own in units[part.start : part.stop] for row in own], engine)
        for engine, part in zip(chosen, contiguous(len(units), len(chosen)), strict=True)
    ]


def contiguous(rows: int, parts: int) -> list[range]:
    """The numbers of `rows` rows in `parts` consecutive ranges whose lengths differ by at most one."""
    cuts = [rows * part // parts for part in range(parts + 1)] if parts else []
    return [range(first, last) for first, last in itertools.pairwise(cuts)]
