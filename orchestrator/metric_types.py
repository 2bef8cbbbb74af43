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


Bands = tuple[tuple[float, str], ...]
"""Named ranges of values: (upper bound, name), ascending."""


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
    bands: Bands = ()
    doing: str = ""
    """For the time of a phase: the text that the user reads while the phase runs."""
    quantile: float | None = None
    """For a length: share of the responses that are not longer."""

    def band_of(self, value: float) -> str:
        """Name of the band that holds `value`; empty for NaN and without bands."""
        if not self.bands or math.isnan(value):
            return ""
        return next((name for bound, name in self.bands if value < bound), self.bands[-1][1])
