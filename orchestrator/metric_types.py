"""The parts of a metric's declaration. The declarations themselves are in `orchestrator.metrics`. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the report. Metrics with equal charts share one chart, at the place of the first of them."""

    title: str
    low: float | None = None
    """Lowest value of the axis: 0 to start at 0, -1 to cut off values below; None: chosen from the values."""
    reach: tuple[float, ...] = ()
    """Values that the axis includes even if no data is there."""
    logarithmic: bool = False
    stacked: bool = False
    """Whether the metrics are parts of a whole, drawn on top of each other."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How the terminal shows the metric: in the live display's table, and in the line of a step."""

    name: str
    format: str
    """Format for `str.format`, such as `{:.2f}`."""
    line: Literal["name and value", "value", "nothing"] = "name and value"
    """The part of the metric that the line of a step shows."""
    deviation: str = ""
    """Key of the metric that holds the standard deviation, which is shown after the value; empty: none."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number about the whole run, at the head of the report."""

    name: str
    of: Literal["sum", "median", "max"]
    """How the fact is computed from the values of all steps."""


KL_TOKENS = 50
"""Mean length of the responses, in generated tokens, for which bounds of the KL per response are given. They grow and
shrink with the length: what counts is the KL per token."""


@dataclass(frozen=True, slots=True)
class Bands:
    """Named ranges of values. Example: `Bands(((1.0, "close"), (math.inf, "far")), tokens=50)`."""

    limits: tuple[tuple[float, str], ...]
    """(upper bound, name), ascending."""
    tokens: float | None = None
    """The bounds hold for responses of so many generated tokens, and grow and shrink with their mean length; None: they
    hold for all."""

    def at(self, length: float | None) -> tuple[tuple[float, str], ...]:
        """The bounds for responses of `length` generated tokens, mean; None: of `tokens`."""
        scale = 1.0 if length is None or self.tokens is None else length / self.tokens
        return tuple((bound * scale, name) for bound, name in self.limits)


KL_BANDS = Bands(
    ((1.0, "close"), (2.0, "moving"), (6.0, "healthy"), (10.0, "stretched"), (20.0, "far"), (math.inf, "collapse")),
    tokens=KL_TOKENS,
)
"""Bands of the KL from the reference, in nats per response of 50 tokens (about the length of the summaries in the N+
details, arXiv 2403.17031): below 1 the policy has hardly moved, 2 to 6 is healthy, from 20 on it collapses."""
KL_BANDS_PER_TOKEN = Bands(KL_BANDS.at(1.0))


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in `metrics.jsonl` means, and where it is shown.

    Example, with a chart of its own: `Metric("value/loss", "", "Half the squared error", Chart("Loss", low=0.0))`.
    """

    key: str
    unit: str
    """Unit; empty for a plain number. `fraction` is between 0 and 1 and shown as a percentage."""
    description: str
    chart: Chart | None = None
    label: str = ""
    """Name in the chart's legend; empty: the key."""
    shown: Shown | None = None
    facts: tuple[Fact, ...] = ()
    bands: Bands | None = None
    doing: str = ""
    """For the time of a phase: the text that the user reads while the phase runs."""
    quantile: float | None = None
    """For a length: share of the responses that are not longer."""

    def band_of(self, value: float, length: float | None = None) -> str:
        """Name of the band that holds `value`; empty for NaN and without bands. `length`: see `Bands.at`."""
        if self.bands is None or math.isnan(value):
            return ""
        limits = self.bands.at(length)
        return next((name for bound, name in limits if value < bound), limits[-1][1])
