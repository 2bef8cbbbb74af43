"""Parts of an evaluation: pass@k, and the score by the values of a column. Pure; numbers of each response flow in,
estimates over the prompts flow out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from orchestrator.report.evaluation_results import Estimate


def prompt_means(values: Sequence[float], each: int) -> list[float]:
    """The mean of each prompt's `each` responses, which are neighbours."""
    return [math.fsum(values[first : first + each]) / each for first in range(0, len(values), each)]


def pass_at(count: int, passed: int, k: int) -> float:
    """Probability that at least one of `k` responses passes, from `count` of which `passed` did: unbiased (Chen et al.,
    arXiv 2107.03374, equation 1).

    Example: `pass_at(4, 1, 2)` is 0.5.
    """
    return 1.0 - math.comb(count - passed, k) / math.comb(count, k)


def pass_rates(values: Sequence[float], each: int, passes: float) -> dict[str, Estimate]:
    """k → pass@k, for k = 1, 2, 4 … and `each`. A response passes with a score of `passes` or more."""
    counts = [sum(value >= passes for value in values[first : first + each]) for first in range(0, len(values), each)]
    wanted = sorted({each, *(2**power for power in range(each.bit_length()))})
    return {str(k): Estimate.of([pass_at(each, passed, k) for passed in counts]) for k in wanted}


def by_value(values: Sequence[float], column: Sequence[Any]) -> dict[str, Estimate]:
    """Value of the column, as text → estimate over the prompts that have it, in the order of their first appearance."""
    names = [str(name) for name in column]
    return {
        name: Estimate.of([value for value, own in zip(values, names, strict=True) if own == name])
        for name in dict.fromkeys(names)
    }
