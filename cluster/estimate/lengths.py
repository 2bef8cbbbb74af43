"""The lengths of responses: their distribution as a quantile function. Pure.

A mean, quantiles, or only a limit flow in; a distribution flows out, from which lengths are drawn.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

SHARES = (*(number / 200 for number in range(200)), 0.9975, 0.999, 0.9995, 0.9999, 0.99999)
"""Shares at which a curve is cut into straight lines: denser towards the longest responses, for which a step waits."""
HALVINGS = 60
"""Number of bisection steps in the search for a median."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The distribution of response lengths, in tokens.

    Example: `Lengths((0.0, 0.5, 1.0), (1.0, 100.0, 1000.0))`: half of the responses have at most 100 tokens, all at
    most 1000, evenly spread between the points.
    """

    shares: tuple[float, ...]
    """Shares of the responses, rising from 0 to 1."""
    tokens: tuple[float, ...]
    """Tokens that each share of the responses does not exceed; never falling."""

    @property
    def mean(self) -> float:
        """Mean length in tokens."""
        points = zip(self.shares, self.tokens, strict=True)
        return sum((after - before) * (low + high) / 2 for (before, low), (after, high) in pairwise(points))

    @property
    def longest(self) -> float:
        """Length of the longest response in tokens."""
        return self.tokens[-1]

    def at(self, share: float) -> float:
        """Tokens that `share` of the responses do not exceed."""
        place = max(min(bisect_left(self.shares, share), len(self.shares) - 1), 1)
        before, low, after, high = *self._point(place - 1), *self._point(place)
        return low + (high - low) * (min(share, after) - before) / (after - before)

    def _point(self, place: int) -> tuple[float, float]:
        return self.shares[place], self.tokens[place]

    def spread_out(self, count: int) -> tuple[float, ...]:
        """`count` lengths that represent the distribution, shortest first: the middle of each of `count` equal
        parts."""
        return _spread_out(self, count)

    def draw(self, count: int, seed: int) -> tuple[float, ...]:
        """`count` lengths of the distribution, in a random order that depends on `seed`."""
        return _draw(self, count, seed)


def fixed(tokens: float) -> Lengths:
    """Responses that all have the same length."""
    return Lengths((0.0, 1.0), (tokens, tokens))


def lognormal(mean: float, spread: float, shortest: float, limit: float) -> Lengths:
    """Lengths whose logarithm is normal, cut at a limit; the median is chosen to give the mean.

    Args:
        mean: mean of the lengths after the cut.
        spread: standard deviation of the logarithm before the cut.
        shortest: least length.
        limit: greatest length.
    """
    mean = min(max(mean, shortest), limit)
    if not spread or mean in (shortest, limit):
        return fixed(mean)
    return _lognormal(mean, spread, shortest, limit)


@lru_cache(maxsize=64)
def _lognormal(mean: float, spread: float, shortest: float, limit: float) -> Lengths:
    normal = NormalDist(0.0, spread)
    middle = [(before + after) / 2 for before, after in pairwise((*SHARES, 1.0))]
    factors = [math.exp(normal.inv_cdf(share)) for share in (middle[0], *SHARES[1:], middle[-1])]

    def of(median: float) -> Lengths:
        return Lengths((*SHARES, 1.0), tuple(min(max(median * factor, shortest), limit) for factor in factors))

    low, high = 0.0, limit / factors[0]
    for _ in range(HALVINGS):
        median = (low + high) / 2
        low, high = (median, high) if of(median).mean < mean else (low, median)
    return of(high)


def from_quantiles(tokens: Mapping[float, float], shortest: float, limit: float) -> Lengths:
    """Measured lengths: share → tokens that it does not exceed. Missing ends are `shortest` and `limit`."""
    points = {0.0: shortest, 1.0: limit} | dict(tokens)
    shares = sorted(points)
    rising, highest = [], 0.0
    for share in shares:
        highest = max(highest, min(points[share], limit))
        rising.append(highest)
    return Lengths(tuple(shares), tuple(rising))


def moved_to_mean(lengths: Lengths, mean: float, limit: float) -> Lengths:
    """The lengths multiplied by one factor and cut at `limit`, so that their mean is `mean`."""
    if not lengths.tokens[0] < mean < limit:
        return fixed(min(max(mean, lengths.tokens[0]), limit))

    def stretched(factor: float) -> Lengths:
        tokens = (min(max(factor * tokens, lengths.tokens[0]), limit) for tokens in lengths.tokens)
        return Lengths(lengths.shares, tuple(tokens))

    low, high = 0.0, limit / lengths.tokens[0]
    for _ in range(HALVINGS):
        factor = (low + high) / 2
        low, high = (factor, high) if stretched(factor).mean < mean else (low, factor)
    return stretched(high)


@lru_cache(maxsize=64)
def _spread_out(lengths: Lengths, count: int) -> tuple[float, ...]:
    points = list(pairwise(zip(lengths.shares, lengths.tokens, strict=True)))
    found, part = [], 0
    for number in range(count):
        share = (number + 0.5) / count
        while share > points[part][1][0] and part < len(points) - 1:
            part += 1
        (before, low), (after, high) = points[part]
        found.append(low + (high - low) * (share - before) / (after - before))
    return tuple(found)


@lru_cache(maxsize=64)
def _draw(lengths: Lengths, count: int, seed: int) -> tuple[float, ...]:
    drawn = list(_spread_out(lengths, count))
    random.Random(seed).shuffle(drawn)
    return tuple(drawn)
