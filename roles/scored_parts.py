"""Which samples of a step are scored together. Pure, and without torch: a plan asks it too."""

from __future__ import annotations

from collections.abc import Sequence

ROWS_OF_A_RANK = 4
"""That are scored together, at least: with fewer, sharded weights are gathered and ranks are called for little."""


def scored_together(shares: Sequence[int], unit: int, least: int) -> list[range]:
    """Rows of a batch in neighbouring ranges, each of as few units as have at least `least` rows; what is left at the
    end goes with the last.

    Args:
        shares: number of rows of each engine; row 0 of the batch is the first engine's first.
        unit: neighbouring rows of an engine that come together; 0: all of its rows.
    """
    ranges: list[range] = []
    first = last = 0
    for rows in shares:
        for start in range(0, rows, unit or max(rows, 1)):
            last += min(unit or rows, rows - start)
            if last - first >= least:
                ranges.append(range(first, last))
                first = last
    if first < last:
        ranges.append(range(ranges.pop().start if ranges else first, last))
    return ranges
