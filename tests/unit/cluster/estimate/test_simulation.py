"""A step as events: against a loop over moments, and what must hold of every step."""

from __future__ import annotations

import itertools
import random

import pytest

from cluster.estimate.simulation import Course, Event, Kind, ScoredPart, simulate, stretched
from cluster.role_table import ENGINES

SPLIT: list[Kind] = [(ENGINES, "actor"), ("critic",), ("reference", "reward")]
APART: list[Kind] = [(ENGINES,), ("actor",), ("critic",), ("reference",), ("reward",)]
TOGETHER: list[Kind] = [(ENGINES, "actor", "critic", "reference", "reward")]
ROLES = ("actor", "critic", "reference", "reward")


def chances(seed: int) -> tuple[list[Kind], list[float], list[ScoredPart], dict[str, float], float]:
    """A step of small whole numbers."""
    chance = random.Random(seed)
    kinds = chance.choice([SPLIT, APART, TOGETHER, [(ENGINES, "reward"), ("actor", "critic"), ("actor", "reference")]])
    engines = [float(chance.randrange(1, 20)) for _ in range(chance.randrange(1, 5))]
    parts = [
        ScoredPart(float(chance.randrange(1, int(engine) + 1)), {role: float(chance.randrange(1, 6)) for role in ROLES})
        for engine in engines
        for _ in range(chance.randrange(1, 4))
    ]
    updates = {role: float(chance.randrange(1, 30)) for role in ("actor", "critic")}
    return kinds, engines, parts, updates, float(chance.randrange(1, 5))


def moment_by_moment(
    kinds: list[Kind], engines: list[float], parts: list[ScoredPart], updates: dict[str, float]
) -> float:
    """When scoring ends: at every moment, whoever waits and finds all cards of its role free begins."""
    homes = {role: [kind for kind in kinds if role in kind] for role in ROLES}
    free = {kind: max(engines) if ENGINES in kind else 0.0 for kind in kinds}
    waiting = {role: [(p.ready, p.seconds[role]) for p in sorted(parts, key=lambda p: p.ready)] for role in ROLES}
    moment, ended = 0.0, max(engines)
    while any(waiting.values()):
        for role, queue in waiting.items():
            if queue and queue[0][0] <= moment and all(free[kind] <= moment for kind in homes[role]):
                _, seconds = queue.pop(0)
                for kind in homes[role]:
                    free[kind] = moment + seconds
                ended = max(ended, moment + seconds)
        moment += 1
    return ended


@pytest.mark.parametrize("seed", range(40))
def test_scoring_against_a_loop_over_moments(seed: int) -> None:
    kinds, engines, parts, updates, push = chances(seed)
    course = simulate(kinds, engines, parts, updates, push)
    assert course.ends["generate"] == max(engines)
    assert course.ends["score"] == moment_by_moment(kinds, engines, parts, updates)
    assert sum(course.phases.values()) == course.ends["push"] == course.ends["update"] + push


@pytest.mark.parametrize("seed", range(40))
def test_cards_do_one_thing_at_a_time_and_nothing_begins_too_early(seed: int) -> None:
    kinds, engines, parts, updates, push = chances(seed)
    events = simulate(kinds, engines, parts, updates, push).events
    for kind in kinds:
        works = sorted((e.begin, e.end) for e in events if e.role in kind and e.rank is None and e.name != "push")
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(works))
        if ENGINES in kind and works:
            assert works[0][0] >= max(engines)
    for role in ROLES:
        scored = [event for event in events if event.role == role and event.name == "score"]
        assert sum(event.end - event.begin for event in scored) == sum(part.seconds[role] for part in parts)
        readies = sorted(part.ready for part in parts)
        assert all(event.begin >= ready for event, ready in zip(scored, readies, strict=True))
    begun = min(event.begin for event in events if event.name == "update")
    assert begun >= max(event.end for event in events if event.name in ("generate", "score"))


def test_a_straggler_hides_the_scoring_of_the_others() -> None:
    parts = [ScoredPart(ready, {"reward": 4.0}) for ready in (2.0, 3.0, 30.0)]
    assert simulate(APART, [2.0, 3.0, 30.0], parts, {}, 0.0).phases["score"] == 4
    assert simulate(TOGETHER, [2.0, 3.0, 30.0], parts, {}, 0.0).phases["score"] == 12
    even = [ScoredPart(30.0, {"reward": 4.0}) for _ in range(3)]
    assert simulate(APART, [30.0] * 3, even, {}, 0.0).phases["score"] == 12


def test_more_cards_are_never_slower() -> None:
    for seed in range(40):
        _, engines, parts, updates, push = chances(seed)
        together, split, apart = (
            simulate(kinds, engines, parts, updates, push).ends["push"] for kinds in (TOGETHER, SPLIT, APART)
        )
        assert apart <= split <= together


def test_stretching_a_phase_stretches_what_happens_in_it() -> None:
    course = Course(
        {"generate": 10.0, "score": 12.0, "update": 12.0, "push": 14.0},
        (Event("critic", None, "score", 8.0, 11.0), Event("actor", None, "push", 12.0, 14.0)),
    )
    other = stretched(course, {"generate": 20.0, "score": 6.0, "update": 0.0, "push": 1.0})
    assert other.ends == {"generate": 20, "score": 26, "update": 26, "push": 27}
    assert [(event.begin, event.end) for event in other.events] == [(16, 23), (26, 27)]
    assert stretched(course, course.phases) == course
