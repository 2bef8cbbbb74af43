from __future__ import annotations

import pytest

from roles.scored_parts import scored_together


@pytest.mark.parametrize(
    ("shares", "unit", "least", "expected"),
    [
        ([4, 4], 0, 1, [range(4), range(4, 8)]),
        ([4, 4], 0, 5, [range(8)]),
        ([4, 4, 4], 0, 5, [range(12)]),  # 8 rows, and what is left
        ([4, 4, 4, 4], 0, 5, [range(8), range(8, 16)]),
        ([5, 4], 2, 1, [range(2), range(2, 4), range(4, 5), range(5, 7), range(7, 9)]),
        ([5, 4], 2, 3, [range(4), range(4, 9)]),
        ([5, 4], 2, 100, [range(9)]),
        ([0, 3, 0], 0, 1, [range(3)]),
        ([0, 0], 2, 1, []),
    ],
)
def test_units_are_scored_together_until_there_are_enough(
    shares: list[int], unit: int, least: int, expected: list[range]
) -> None:
    assert scored_together(shares, unit, least) == expected
