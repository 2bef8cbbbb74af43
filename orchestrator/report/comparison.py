"""The report of a pipeline: what was measured of several policies on the same held-out prompts, side by side.

Evaluations and the seconds of the stages flow in; `report.html` and `report.json` flow out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.display_text import duration
from orchestrator.report.evaluation_results import (
    Estimate,
    EvaluationChange,
    EvaluationResult,
    evaluation_changes,
    same_prompts,
)
from orchestrator.report.page import content_policy, page_style, page_template, sample_table
from orchestrator.report.run_files import HTML_FILE, finite, replace_text

COMPARED_JSON = "report.json"
"""The numbers of the report, beside it."""
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage that is done."""

    name: str
    command: str
    output: str
    needs: Sequence[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class ComparedPolicy:
    """A column of the report."""

    heading: str
    stage: str
    """The stage that has measured it."""
    result: EvaluationResult
    made_by: Sequence[str]
    """All stages whose work it took, without the measuring."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The contents of the report."""

    name: str
    compared: Sequence[ComparedPolicy]
    """The others are compared with the first."""
    stages: Sequence[StageTime]
    price_per_hour: float | None
    samples: int
    """Prompts whose responses are shown, at most."""

    def seconds_of(self, column: ComparedPolicy) -> float:
        """Seconds of all stages whose work a column took."""
        return sum(stage.seconds for stage in self.stages if stage.name in column.made_by)

    def price(self, seconds: float) -> float | None:
        """What the machines cost in that time."""
        return None if self.price_per_hour is None else self.price_per_hour * seconds / HOUR_S

    def changes(self, column: ComparedPolicy) -> dict[str, EvaluationChange]:
        """Name of a measure → its difference from the first column; none for the first, and for one that was measured
        on another set of held-out prompts."""
        first = self.compared[0]
        alike = column is not first and column.result.name == first.result.name
        found = evaluation_changes(first.result, column.result) if alike else []
        return {change.name: change for change in found}


def measures(result: EvaluationResult) -> dict[str, Estimate | None]:
    """Name of a measure, as in the changes between two evaluations → its estimate."""
    return {
        "gold score": result.gold,
        "proxy score": result.proxy,
        "KL to the reference": result.kl,
        "response length": result.length,
    }


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write the page and the numbers into `folder`; returns the page's path."""
    for name, text in ((COMPARED_JSON, numbers(comparison)), (HTML_FILE, comparison_page(comparison))):
        replace_text(folder / name, text)
    return folder / HTML_FILE


def numbers(comparison: Comparison) -> str:
    """The report as JSON."""
    columns: dict[str, Any] = {}
    for column in comparison.compared:
        result, seconds = column.result, comparison.seconds_of(column)
        estimates = {name: None if one is None else asdict(one) for name, one in measures(result).items()}
        changes = comparison.changes(column).values()
        columns[column.heading] = {
            "stage": column.stage,
            "set": result.name,
            "prompts": result.prompts,
            **{name.replace(" ", "_"): estimate for name, estimate in estimates.items()},
            "truncated_fraction": result.truncated_fraction,
            "seconds": seconds,
            "money": comparison.price(seconds),
            "difference_from_first": {change.name.replace(" ", "_"): asdict(change.difference) for change in changes},
        }
    stages = {stage.name: asdict(stage) for stage in comparison.stages}
    return json.dumps(finite({"compared": columns, "stages": stages}), indent=1, ensure_ascii=False) + "\n"


def comparison_page(comparison: Comparison) -> str:
    """The HTML of the page: it loads nothing, runs no script, and escapes all text."""
    results = {column.heading: column.result for column in comparison.compared}
    table = sample_table(results)
    total = sum(stage.seconds for stage in comparison.stages)
    return str(
        page_template("comparison.html.jinja").render(
            comparison=comparison,
            results=results,
            changes=[comparison.changes(column) for column in comparison.compared],
            samples_shown=table._replace(rows=table.rows[: comparison.samples]),
            measures=measures,
            duration=duration,
            units={"KL to the reference": "nats", "response length": "tokens"},
            total=total,
            several_sets=len({result.name for result in results.values()}) > 1,
            same_prompts=all(same_prompts(comparison.compared[0].result, result) for result in results.values()),
            style=page_style(),
            policy=content_policy([]),
        )
    )
