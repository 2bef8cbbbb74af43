"""Samples of all steps that a query asks for, the newest first: a run's folder and a query flow in; some of what is
found flows out, and where to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.viewer.sample_query import SampleQuery, matching
from orchestrator.viewer.sample_store import TOLD_COLUMNS, SampleStore

FOUND_STEPS = 50
"""Steps with samples that are told at a time."""
FOUND_ROWS = 3
"""Samples that are told of a step."""
LOOKING_S = 2.0
"""Seconds after which no further step is looked through; one always is."""


@dataclass(slots=True)
class FoundSteps:
    """What a search has found so far."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """Of each step with such samples, the newest first: `step`, how many match of how many, the first `rows`."""
    looked: int = 0
    """Number of steps that were looked through."""
    before: int | None = None
    """The steps before this one are still to be looked through; None: there are none."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be read."""


def search_steps(
    store: SampleStore,
    run_dir: Path,
    query: SampleQuery,
    before: int | None,
    shorten: Callable[[dict[str, Any]], dict[str, Any]],
) -> FoundSteps:
    """Look through the steps of a run, from the newest one before step `before` on. ValueError says what cannot be
    asked.

    Args:
        shorten: a row as a table shows it.
    """
    found, until = FoundSteps(), time.monotonic() + LOOKING_S
    steps = [step for step in reversed(store.steps(run_dir)) if before is None or step < before]
    for step in steps:
        if found.looked and (len(found.steps) == FOUND_STEPS or time.monotonic() >= until):
            found.before = steps[found.looked - 1]
            break
        found.looked += 1
        try:
            table = store.table(run_dir, step, query.reads_texts, keep=False)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        rows = matching(table, query)
        if len(rows):
            first = rows[:FOUND_ROWS].to_pylist()
            told = store.rows(run_dir, step, first, TOLD_COLUMNS).to_pylist()
            shown = [{"row": row, **shorten(one)} for row, one in zip(first, told, strict=True)]
            found.steps.append({"step": step, "matching": len(rows), "total": table.num_rows, "rows": shown})
    return found
