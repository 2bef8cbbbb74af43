"""A PPO step as events: engines generate, finished parts are scored, then updates, then the push. Pure.

Seconds of each engine, part and role flow in (`cluster.estimate.generation`, `cluster.estimate.roofline`), events with
their times flow out. Roles on the same cards take turns, and wait while engines generate there; roles on other cards
work at the same time.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.role_table import ENGINES, working_in

Kind = tuple[str, ...]
"""Names of the roles that share one card."""


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Some responses of one engine, which are scored together."""

    ready: float
    """Second at which the last of them is complete."""
    seconds: Mapping[str, float]
    """Role → seconds of its pass over them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: work of a role or an engine on its cards.

    Example: `Event("critic", None, "score", 10.0, 12.5)`: all ranks of the critic score a part, from second 10.
    """

    role: str
    rank: int | None
    """Index of the rank; None: all ranks of the role together."""
    name: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Course:
    """The events of a step, and the ends of its phases."""

    ends: dict[str, float]
    """Phase (generate, score, update, push) → its end, in seconds after the beginning of the step."""
    events: tuple[Event, ...]

    @property
    def phases(self) -> dict[str, float]:
        """Phase → its seconds, from the end of the phase before it."""
        begins = (0.0, *self.ends.values())
        return {phase: end - begin for (phase, end), begin in zip(self.ends.items(), begins, strict=False)}


def stretched(course: Course, phases: Mapping[str, float]) -> Course:
    """The course with other seconds per phase; the events of each phase are stretched to fit."""
    ends, reached = dict[str, float](), 0.0
    for phase in course.ends:
        reached += phases[phase]
        ends[phase] = reached
    old, new = [0.0, *course.ends.values()], [0.0, *ends.values()]

    def moved(moment: float) -> float:
        place = max(min(bisect_left(old, moment), len(old) - 1), 1)
        before, after = old[place - 1], old[place]
        share = (moment - before) / (after - before) if after > before else 1.0
        return new[place - 1] + share * (new[place] - new[place - 1])

    return Course(
        ends, tuple(replace(event, begin=moved(event.begin), end=moved(event.end)) for event in course.events)
    )


def simulate(
    kinds: Collection[Kind],
    engines: Sequence[float],
    parts: Iterable[ScoredPart],
    updates: Mapping[str, float],
    push: float,
) -> Course:
    """Simulate one step.

    Args:
        kinds: which roles share cards. A role in several kinds works on the cards of all of them at once.
        engines: seconds in which each engine generates.
        updates: role → seconds.
        push: seconds, on the cards of actor and engines.
    """
    cards = _Cards(kinds)
    events = [Event(ENGINES, number, "generate", 0.0, seconds) for number, seconds in enumerate(engines)]
    generated = max(engines)
    cards.hold(ENGINES, generated)
    passes: dict[str, deque[tuple[float, float]]] = {}
    for part in sorted(parts, key=lambda part: part.ready):
        for role, seconds in part.seconds.items():
            passes.setdefault(role, deque()).append((part.ready, seconds))
    events += cards.work("score", passes)
    scored = max((event.end for event in events), default=0.0)
    events += cards.work("update", {role: deque([(scored, seconds)]) for role, seconds in updates.items()})
    updated = max(event.end for event in events)
    pushed = updated + push
    events += [Event(role, None, "push", updated, pushed) for role in working_in("push") if push]
    return Course({"generate": generated, "score": scored, "update": updated, "push": pushed}, tuple(events))


class _Cards:
    """The second at which the cards of each kind become free."""

    def __init__(self, kinds: Collection[Kind]) -> None:
        self._free = dict.fromkeys(kinds, 0.0)

    def hold(self, role: str, until: float) -> None:
        """Keep a role's cards busy until the second `until`."""
        for kind in self._homes(role):
            self._free[kind] = until

    def work(self, name: str, waiting: dict[str, deque[tuple[float, float]]]) -> list[Event]:
        """Let each role do its waiting work, pairs of (ready at, seconds), in order; the role that can begin first
        goes first."""
        events: list[Event] = []
        heap = [(queue[0][0], place, role) for place, (role, queue) in enumerate(waiting.items())]
        heapq.heapify(heap)
        while heap:
            moment, place, role = heapq.heappop(heap)
            since, seconds = waiting[role][0]
            begin = max([since, *(self._free[kind] for kind in self._homes(role))])
            if begin > moment:
                heapq.heappush(heap, (begin, place, role))
                continue
            waiting[role].popleft()
            events.append(Event(role, None, name, begin, begin + seconds))
            self.hold(role, begin + seconds)
            if waiting[role]:
                heapq.heappush(heap, (waiting[role][0][0], place, role))
        return events

    def _homes(self, role: str) -> list[Kind]:
        return [kind for kind in self._free if role in kind]
