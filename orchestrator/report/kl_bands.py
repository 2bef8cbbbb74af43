"""Health bands of the KL from the reference, in nats per response: what the reports call healthy or far. Pure."""

from __future__ import annotations

import math

BANDS: tuple[tuple[float, str], ...] = (
    (1.0, "close"),
    (2.0, "moving"),
    (6.0, "healthy"),
    (10.0, "stretched"),
    (20.0, "far"),
    (math.inf, "collapse"),
)
"""(upper bound in nats a response, name), ascending."""


def health(kl: float) -> str:
    """The band of a KL in nats a response: below 1 it has hardly moved, 2 to 6 is healthy, from 20 it collapses."""
    return next((name for bound, name in BANDS if kl < bound), BANDS[-1][1])
