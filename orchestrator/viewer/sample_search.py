"""Samples of all steps that a query asks for, the newest first: a run's folder and a query flow in; some of what is
found flows out, and where to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.report.run_files import kept_samples
from orchestrator.viewer.errors import NotThere
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
    """Why steps could not answer, each reason once: a file that cannot be read, a column that a step has not."""


def search_steps(
    store: SampleStore,
    run_dir: Path,
    query: SampleQuery,
    before: int | None,
    shorten: Callable[[dict[str, Any]], dict[str, Any]],
) -> FoundSteps:
    """Look through the steps of a run, from the newest one before step `before` on. ValueError if it was asked of all
    steps and none could answer.

    Args:
        shorten: a row as a table shows it.
    """
    found, until = FoundSteps(), time.monotonic() + LOOKING_S
    unanswered: dict[str, list[int]] = {}
    try:
        there = store.steps(run_dir)
    except ValueError:  # the head of the run tells it
        there = list(kept_samples(run_dir))
    steps = [step for step in reversed(there) if before is None or step < before]
    for step in steps:
        if found.looked and (len(found.steps) == FOUND_STEPS or time.monotonic() >= until):
            found.before = steps[found.looked - 1]
            break
        found.looked += 1
        try:
            one = _found(store, run_dir, step, query, shorten)
        except (ValueError, NotThere, OSError) as error:
            gone = isinstance(error, NotThere | FileNotFoundError)  # a run that is resumed sets steps aside
            unanswered.setdefault("no longer there" if gone else str(error), []).append(step)
            continue
        if one is not None:
            found.steps.append(one)
    if steps and before is None and sum(map(len, unanswered.values())) == len(steps):
        raise ValueError("; ".join(unanswered))
    found.problems = [f"{_named(its)}: {reason}" for reason, its in unanswered.items()]
    return found


def _found(
    store: SampleStore,
    run_dir: Path,
    step: int,
    query: SampleQuery,
    shorten: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any] | None:
    """What is told of a step; None: it has no such samples."""
    table = store.table(run_dir, step, query.reads_texts, keep=False)
    rows = matching(table, query)
    if not len(rows):
        return None
    first = rows[:FOUND_ROWS].to_pylist()
    told = store.rows(run_dir, step, first, TOLD_COLUMNS).to_pylist()
    shown = [{"row": row, **shorten(one)} for row, one in zip(first, told, strict=True)]
    return {"step": step, "matching": len(rows), "total": table.num_rows, "rows": shown}


def _named(steps: list[int]) -> str:
    """Steps, the newest first, in words."""
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[-1]} to {steps[0]}"
