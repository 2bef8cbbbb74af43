"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old` stands once in `file`; with `new` in its place at least one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    """Where it should be noticed, for pytest; separated by spaces."""
