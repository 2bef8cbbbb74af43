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
"""Number of bisection steps in the search for a median or a spread."""
MOST_SPREAD = 3.0
"""Greatest standard deviation of a length's logarithm that is looked for."""


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
    low, high = 0.0, limit / _factors(spread)[0]
    for _ in range(HALVINGS):
        median = (low + high) / 2
        low, high = (median, high) if _curve(median, spread, shortest, limit).mean < mean else (low, median)
    return _curve(high, spread, shortest, limit)


def _curve(median: float, spread: float, shortest: float, limit: float) -> Lengths:
    """The lengths of a lognormal, none under `shortest` and none over `limit`."""
    return Lengths((*SHARES, 1.0), tuple(min(max(median * factor, shortest), limit) for factor in _factors(spread)))


@lru_cache(maxsize=64)
def _factors(spread: float) -> tuple[float, ...]:
    """Lengths of a lognormal of median 1 at SHARES and 1."""
    normal = NormalDist(0.0, spread) if spread else None
    middle = [(before + after) / 2 for before, after in pairwise((*SHARES, 1.0))]
    places = (middle[0], *SHARES[1:], middle[-1])
    return tuple(math.exp(normal.inv_cdf(share)) if normal else 1.0 for share in places)


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


def at_another_limit(lengths: Lengths, limit: float) -> Lengths:
    """The lengths as they would be with another limit than their longest, which has cut some of them.

    A lower limit cuts more. A higher one lets those go on that were cut: as a lognormal does that the old limit cuts
    to the same share and the same mean. Where all were cut, nothing is known, and they grow with the limit.
    """
    old, ended = lengths.longest, lengths.shares[bisect_left(lengths.tokens, lengths.longest)]
    if limit <= old or ended == 1.0:
        return Lengths(lengths.shares, tuple(min(tokens, limit) for tokens in lengths.tokens))
    if not ended:
        return Lengths(lengths.shares, tuple(tokens * limit / old for tokens in lengths.tokens))
    grown = _cut_alike(ended, lengths.mean, old, limit)
    longer = [(share, tokens) for share, tokens in zip(grown.shares, grown.tokens, strict=True) if share > ended]
    shorter = [point for point in zip(lengths.shares, lengths.tokens, strict=True) if point[0] <= ended]
    shares, tokens = zip(*shorter, *longer, strict=True)
    return Lengths(shares, tokens)


@lru_cache(maxsize=64)
def _cut_alike(ended: float, mean: float, old: float, limit: float) -> Lengths:
    """A lognormal cut at `limit`, of which `ended` stay below `old`, and whose mean is `mean` if it is cut there."""
    place = NormalDist().inv_cdf(ended)

    def of(spread: float, cut: float) -> Lengths:
        return _curve(old * math.exp(-place * spread), spread, 0.0, cut)

    low, high = 0.0, MOST_SPREAD
    for _ in range(HALVINGS):
        spread = (low + high) / 2
        low, high = (spread, high) if of(spread, old).mean > mean else (low, spread)
    return of(high, limit)


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
