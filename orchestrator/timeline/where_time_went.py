"""Where the time of a run's steps went, as text and as plain numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cluster.counts import counted
from orchestrator.display_text import percent
from orchestrator.timeline.course_of_step import CourseOfStep, shares
from orchestrator.timeline.critical_path import critical_path, gains

SHOWN = 0.005
"""Smallest share of a step that is worth a line."""


def chosen_step(steps: Sequence[CourseOfStep], number: int | None) -> CourseOfStep:
    """The step of a number, or (None) one of median length. ValueError for a step that is not there."""
    if number is None:
        return sorted(steps, key=lambda step: step.seconds)[(len(steps) - 1) // 2]
    for step in steps:
        if step.step == number:
            return step
    there = f"{steps[0].step} to {steps[-1].step}"
    raise ValueError(f"step {number} is not in the timeline, which has {there}; choose one of these")


def as_numbers(steps: Sequence[CourseOfStep], step: CourseOfStep) -> dict[str, Any]:
    """What `as_lines` says of a step, and the seconds of all steps."""
    path = [
        {"who": link.who, "what": link.what, "from": link.began - step.began, "to": link.ended - step.began}
        for link in critical_path(step)
    ]
    return {
        "steps": {course.step: course.seconds for course in steps},
        "step": step.step,
        "seconds": step.seconds,
        "phases": {name: ended - began for name, began, ended in _inside(step)},
        "roles": shares(step),
        "critical_path": path,
        "gains": gains(step),
    }


def as_lines(steps: Sequence[CourseOfStep], step: CourseOfStep) -> list[str]:
    """The phases of a step; of each role how long it was busy, and for whom it waited; the critical path; and by how
    much the step would be shorter without one of its parts."""
    middle = median(course.seconds for course in steps)
    of = f"{counted(len(steps), 'step')}, median {middle:.2f} s"
    phases = ", ".join(f"{name} {ended - began:.2f} s" for name, began, ended in _inside(step))
    lines = [f"step {step.step}: {step.seconds:.2f} s ({of})", f"phases: {phases}", ""]
    lines += _table(["role", "busy", "waits for"], [[role, *_words(own)] for role, own in shares(step).items()])
    links = [link for link in critical_path(step) if link.ended - link.began >= SHOWN * step.seconds]
    rows = [
        [f"{link.began - step.began:.2f}", f"{link.ended - link.began:.2f}", link.who, _named(link.what, link.calls)]
        for link in links
    ]
    lines += ["", "critical path, in seconds:", *_table(["from", "takes", "who", "what"], rows)]
    found = [(name, gain) for name, gain in gains(step).items() if gain >= SHOWN * step.seconds]
    rows = [[name, f"{gain:.2f} s", percent(round(gain / step.seconds, 3))] for name, gain in found]
    return [*lines, "", "if it took no time, the step would be shorter by:", *_table(["", "", ""], rows)[1:]]


def _inside(step: CourseOfStep) -> list[tuple[str, float, float]]:
    return [phase for phase in step.phases if phase[1] >= step.began and phase[2] <= step.ended]


def _words(own: Mapping[str, float]) -> list[str]:
    waits = sorted(((name, share) for name, share in own.items() if name != "busy"), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} {share:.0%}" for name, share in waits if share >= SHOWN)
    return [f"{own['busy']:.0%}", told or "nobody"]


def _named(what: str, calls: int) -> str:
    return f"{what} ({calls} calls)" if calls > 1 else what


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in [head, *rows])
    return [f"  {line}".rstrip() for line in lines]
