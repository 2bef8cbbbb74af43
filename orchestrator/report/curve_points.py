"""The points of a curve; those of a long run flow in, fewer ones that look the same flow out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

MOST_POINTS = 2000
"""Steps of a chart: more than it has columns of pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve. Example: `Line("value/loss", [(1, 0.4), (2, nan), (3, 0.3)])`."""

    name: str
    points: list[tuple[int, float]]
    """(step, value), ascending by step; NaN for a value that is not finite."""
    errors: list[float] | None = None
    """Half the height of each point's error bar."""
    place: int | None = None
    """Which of the colours it has; None: that of its place among the lines."""

    @property
    def steps(self) -> list[int]:
        """Steps of the points."""
        return [step for step, _ in self.points]

    @property
    def values(self) -> list[float]:
        """Values of the points."""
        return [value for _, value in self.points]


def thinned(lines: Sequence[Line]) -> list[Line]:
    """The lines of a chart with at most `MOST_POINTS` steps, the same ones for all, so that all have a value where one
    is pointed at. Each line keeps its first and last value, and of each of many equal ranges its lowest and highest one
    and a gap if it has any."""
    if len({step for line in lines for step in line.steps}) <= MOST_POINTS:
        return list(lines)
    kept = {step for line in lines for step in _telling(line, MOST_POINTS // len(lines))}
    return [_at(line, kept) for line in lines]


def _telling(line: Line, most: int) -> Iterator[int]:
    """Steps of the values that a curve of at most `most` points needs."""
    points = line.points
    yield from (step for step, _ in points[:1] + points[-1:])
    ranges = max((most - 2) // 3, 1)
    size = math.ceil(len(points) / ranges)
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        known = [(value, step) for step, value in part if math.isfinite(value)]
        yield from (step for _, step in (min(known), max(known)) if known)
        yield from [step for step, value in part if not math.isfinite(value)][:1]


def _at(line: Line, steps: set[int]) -> Line:
    places = [place for place, step in enumerate(line.steps) if step in steps]
    errors = [line.errors[place] for place in places] if line.errors else None
    return replace(line, points=[line.points[place] for place in places], errors=errors)
