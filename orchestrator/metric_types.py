"""What a declaration of a metric consists of. The declarations themselves are in `orchestrator.metrics`. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the report. Metrics with equal charts share one; it stands where its first metric is declared."""

    title: str
    low: float | None = None
    """Lowest value on the axis: 0 where the axis starts at 0, -1 to cut off what lies below."""
    reach: tuple[float, ...] = ()
    """Values that the axis shows even if no value lies there."""
    logarithmic: bool = False
    stacked: bool = False
    """The metrics are parts of a whole, drawn on top of each other."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How the terminal shows the metric: in the live display's table, and in the line of a step."""

    name: str
    format: str
    """Of `str.format`, such as `{:.2f}`."""
    line: Literal["name and value", "value", "nothing"] = "name and value"
    """What of it stands in the line of a step."""
    deviation: str = ""
    """Key of the metric that is its standard deviation, shown behind it."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A number about the whole run, at the head of the report."""

    name: str
    of: Literal["sum", "median", "max"]
    """How it follows from the values of the steps."""


Bands = tuple[tuple[float, str], ...]
"""Named ranges of values: (upper bound, name), ascending."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in `metrics.jsonl` means, and where it is shown.

    Example, with a chart of its own: `Metric("value/loss", "", "Half the squared error", Chart("Loss", low=0.0))`.
    """

    key: str
    unit: str
    """Empty: a plain number. `fraction` is between 0 and 1 and shown as a percentage."""
    description: str
    chart: Chart | None = None
    label: str = ""
    """Name in the chart's legend; empty: the key."""
    shown: Shown | None = None
    facts: tuple[Fact, ...] = ()
    bands: Bands = ()
    doing: str = ""
    """Of a phase's time: what the user reads while the phase runs."""
    quantile: float | None = None
    """Of a length: share of the responses that are no longer."""

    def band_of(self, value: float) -> str:
        """Name of the band that holds `value`; empty for NaN and without bands."""
        if not self.bands or math.isnan(value):
            return ""
        return next((name for bound, name in self.bands if value < bound), self.bands[-1][1])
