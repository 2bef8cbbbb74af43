"""The steps in a run's `trace.json.gz`, as they went. A run's folder flows in, a `CourseOfStep` for each step flows
out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.timeline.course_of_step import CourseOfStep, WorkedCall
from orchestrator.timeline.events import MICRO, TraceEvent
from orchestrator.timeline.trace_file import TRACE_FILE, read_trace


def recorded_steps(run_dir: Path) -> list[CourseOfStep]:
    """The steps of a run, ascending. ValueError if its file is missing, has none, or is not as a run has written it."""
    path = run_dir / TRACE_FILE
    if not path.is_file():
        raise ValueError(f"{run_dir} has no {TRACE_FILE}: it is no run, or one with report.trace: false")
    try:
        found = [course for part in read_trace(path) if (course := _course(part)).seconds]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no timeline of a run ({error!r}); remove it") from error
    if not found:
        raise ValueError(f"{path} has no step yet")
    return found


def _course(part: Sequence[TraceEvent]) -> CourseOfStep:
    head = part[0]["args"]
    spans = [event for event in part if event["ph"] == "X"]
    phases = [(event["name"], *_times(event)) for event in spans if event["cat"] == "phase"]
    calls = [_call(event) for event in spans if event["cat"] == "call"]
    calls.sort(key=lambda call: call.ended)
    return CourseOfStep(head["step"], head["began"], head["ended"], tuple(phases), tuple(calls))


def _call(event: TraceEvent) -> WorkedCall:
    about, (began, ended) = event["args"], _times(event)
    method = event["name"].removeprefix(f"{about['role']} ")
    return WorkedCall(about["role"], about["rank"], method, began, ended, about["asked"], about["by"])


def _times(event: TraceEvent) -> tuple[float, float]:
    return event["ts"] / MICRO, (event["ts"] + event["dur"]) / MICRO
