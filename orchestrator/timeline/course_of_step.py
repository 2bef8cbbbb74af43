"""A step as it went: the driver's phases and the calls of all ranks; and for whom a rank waited in between. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CLOCKS_S = 1e-3
"""Seconds by which the clocks of two nodes may still differ."""
THE_DRIVER = "driver"
Phase = tuple[str, float, float]
"""Name, begin and end."""


@dataclass(frozen=True, slots=True)
class WorkedCall:
    """A call of a method on a rank.

    Example: `WorkedCall("critic", 0, "values", began=2.0, ended=3.5, asked=1.5, by="driver")`: the rank was asked while
    it did something else.
    """

    role: str
    rank: int
    method: str
    began: float
    ended: float
    asked: float
    """When the call was made."""
    by: str
    """Who made it: `THE_DRIVER`, or a rank."""

    @property
    def who(self) -> str:
        """The rank."""
        return f"{self.role} {self.rank}"

    @property
    def what(self) -> str:
        """Role and method."""
        return f"{self.role} {self.method}"


@dataclass(frozen=True, slots=True)
class CourseOfStep:
    """One step; all times are wall-clock seconds of the driver."""

    step: int
    began: float
    ended: float
    phases: tuple[Phase, ...]
    calls: tuple[WorkedCall, ...]
    """In order of their ends; those before and after the step too."""

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        return self.ended - self.began

    def phase_at(self, moment: float) -> str:
        """The driver's phase; empty between them."""
        return next((name for name, began, ended in self.phases if began <= moment <= ended), "")

    @property
    def inside(self) -> list[WorkedCall]:
        """The calls that overlap the step."""
        return [call for call in self.calls if call.ended > self.began and call.began < self.ended]


@dataclass(frozen=True, slots=True)
class IdleTime:
    """Time in which a rank had nothing to do."""

    began: float
    ended: float
    waits_for: str
    """`THE_DRIVER`, or the role whose call ended last before the rank was asked for more."""


def idle_times(course: CourseOfStep) -> dict[str, list[IdleTime]]:
    """Rank → the times between its calls in the step, and for whom it waited.

    A rank that is free waits for the rank whose answer the driver needed to ask it for more: the last one that answered
    before that. What is left until it begins, it waits for the driver.
    """
    inside, ends = course.inside, [call.ended for call in course.calls]
    found: dict[str, list[IdleTime]] = {}
    for who in dict.fromkeys(call.who for call in inside):
        reached, own = course.began, found.setdefault(who, [])
        for call in sorted((call for call in inside if call.who == who), key=lambda call: call.began):
            if call.began > reached:
                own += _for_whom(course, ends, who, reached, call.began, call)
            reached = max(reached, call.ended)
        if reached < course.ended:
            own += _for_whom(course, ends, who, reached, course.ended, None)
    return found


def _for_whom(
    course: CourseOfStep, ends: Sequence[float], who: str, began: float, ended: float, then: WorkedCall | None
) -> list[IdleTime]:
    if then is not None and then.by != THE_DRIVER:
        return [IdleTime(began, ended, then.by.rpartition(" ")[0])]
    asked = min(then.asked, ended) if then is not None else ended
    place = bisect_right(ends, asked + CLOCKS_S) - 1
    while place >= 0 and course.calls[place].ended > began:
        if course.calls[place].who != who:
            until = min(course.calls[place].ended, ended)
            first = [IdleTime(began, until, course.calls[place].role)] if until > began else []
            return first + ([IdleTime(until, ended, THE_DRIVER)] if ended > until else [])
        place -= 1
    return [IdleTime(began, ended, THE_DRIVER)]


def shares(course: CourseOfStep) -> dict[str, Mapping[str, float]]:
    """Role → what its ranks did in the step, as shares that add up to 1: `busy`, and each for whom they waited."""
    totals: dict[str, dict[str, float]] = {}
    for call in course.inside:
        own = totals.setdefault(call.role, {"busy": 0.0})
        own["busy"] += min(call.ended, course.ended) - max(call.began, course.began)
    for who, idle in idle_times(course).items():
        own = totals[who.rpartition(" ")[0]]
        for time in idle:
            own[time.waits_for] = own.get(time.waits_for, 0.0) + time.ended - time.began
    return {role: {name: s / sum(own.values()) for name, s in own.items()} for role, own in totals.items()}
