"""What a step had to wait for, one thing after another, and how much shorter it would be without one of them. Pure.

A `CourseOfStep` flows in; the links of its critical path, and seconds, flow out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.role_table import ENGINES
from orchestrator.timeline.course_of_step import CLOCKS_S, THE_DRIVER, CourseOfStep, WorkedCall


@dataclass(frozen=True, slots=True)
class PathLink:
    """A part of the critical path."""

    who: str
    what: str
    """Role and method; of the driver its phase."""
    began: float
    ended: float
    calls: int = 1


def critical_path(course: CourseOfStep) -> list[PathLink]:
    """The links from the step's beginning to its end, without gaps; consecutive calls of one method on one rank are
    one."""
    backwards: list[PathLink] = []
    for link in _backwards(course):
        later = backwards[-1] if backwards else None
        if later is not None and (later.who, later.what) == (link.who, link.what):
            backwards[-1] = PathLink(link.who, link.what, link.began, later.ended, later.calls + link.calls)
        else:
            backwards.append(link)
    return backwards[::-1]


def _backwards(course: CourseOfStep) -> Iterator[PathLink]:
    """The links from the end of the step to its beginning, before equal ones are joined."""
    calls = [call for call in course.inside if call.by == THE_DRIVER]
    ends = [call.ended for call in calls]
    before = _calls_before(calls)
    moment, forced = course.ended, None
    while moment > course.began:
        call = forced or _latest(calls, ends, moment)
        if call is None:
            yield from _of_driver(course, course.began, moment)
            return
        ended = min(call.ended, moment)
        yield from _of_driver(course, ended, moment)
        began = max(min(call.began, ended), course.began)
        if ended > began:
            yield PathLink(call.who, call.what, began, ended)
        previous = before[call]
        forced = previous if previous is not None and previous.ended > call.asked else None
        moment = began
        if forced is None and call.asked < began:
            moment = max(call.asked, course.began)
            yield from _of_driver(course, moment, began)


def _latest(calls: list[WorkedCall], ends: list[float], moment: float) -> WorkedCall | None:
    """The call that ended last until `moment`, of those that began before it."""
    place = bisect_right(ends, moment + CLOCKS_S) - 1
    while place >= 0 and calls[place].began >= moment:
        place -= 1
    return calls[place] if place >= 0 else None


def _of_driver(course: CourseOfStep, began: float, ended: float) -> Iterator[PathLink]:
    if ended > began:
        yield PathLink(THE_DRIVER, course.phase_at((began + ended) / 2) or "between phases", began, ended)


def _calls_before(calls: list[WorkedCall]) -> dict[WorkedCall, WorkedCall | None]:
    """Each call → the call before it on the same rank."""
    latest: dict[str, WorkedCall] = {}
    found = {}
    for call in sorted(calls, key=lambda call: call.began):
        found[call] = latest.get(call.who)
        latest[call.who] = call
    return found


def seconds_without(course: CourseOfStep, free: str | None) -> float:
    """Seconds of the step if what `free` names took no time: a method of a role (`critic update`, on all its ranks), or
    `THE_DRIVER`; None: nothing is free.

    Every call begins when its rank is free and it has been asked for. The driver asks when the calls have ended whose
    answers it had when it asked; while it generates, only those of the engines, since each part is scored as soon as it
    is there. Its own time between these answers and the question stays.
    """
    inside = (call for call in course.inside if call.by == THE_DRIVER)
    calls = sorted(inside, key=lambda call: (call.asked, call.began))  # a rank does first what it was asked first
    by_end, done = sorted(calls, key=lambda call: call.ended), 0
    now: dict[WorkedCall, float] = {}
    of_rank: dict[str, WorkedCall] = {}
    known = {True: (course.began, course.began), False: (course.began, course.began)}
    """Whether only engines count → the end of the last call that had ended, as it was and as it would be."""
    own = 0.0 if free == THE_DRIVER else 1.0
    for call in calls:
        while done < len(by_end) and by_end[done].ended <= call.asked + CLOCKS_S and by_end[done] in now:
            ended = by_end[done]
            for engines_only in (True, False):
                if ended.role == ENGINES or not engines_only:
                    was, would = known[engines_only]
                    known[engines_only] = max(was, ended.ended), max(would, now[ended])
            done += 1
        was, would = known[course.phase_at(call.asked) == "generate"]
        asked = would + own * max(call.asked - was, 0.0)
        before = of_rank.get(call.who)
        ready = max(asked, now[before]) if before else asked
        delay = max(call.began - max(call.asked, before.ended if before else 0.0, course.began), 0.0)
        took = 0.0 if free == call.what else call.ended - max(call.began, course.began)
        now[call], of_rank[call.who] = ready + own * delay + took, call
    last = max((call.ended for call in calls), default=course.began)
    end = max(now.values(), default=course.began)
    return end - course.began + own * max(course.ended - last, 0.0)


def gains(course: CourseOfStep) -> dict[str, float]:
    """What takes time in the step → seconds by which the step would be shorter without it; the largest first."""
    names = [*dict.fromkeys(call.what for call in course.inside if call.by == THE_DRIVER), THE_DRIVER]
    whole = seconds_without(course, None)
    found = {name: whole - seconds_without(course, name) for name in names}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
