"""For whom a rank waits, the critical path, and what a step would be without one of its parts."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from orchestrator.timeline.course_of_step import THE_DRIVER, CourseOfStep, WorkedCall, idle_times, shares
from orchestrator.timeline.critical_path import critical_path, gains, seconds_without


def call(who: str, method: str, began: float, ended: float, asked: float, by: str = THE_DRIVER) -> WorkedCall:
    role, rank = who.split()
    return WorkedCall(role, int(rank), method, began, ended, asked, by)


def course(*calls: WorkedCall, ended: float = 10.0, phases: tuple[tuple[str, float, float], ...] = ()) -> CourseOfStep:
    return CourseOfStep(1, 0.0, ended, phases, tuple(sorted(calls, key=lambda call: call.ended)))


SPLIT = course(
    call("rollout 0", "stream", 0.0, 2.0, 0.0),
    call("rollout 0", "stream", 2.0, 4.0, 0.0),
    call("critic 0", "values", 2.0, 5.0, 2.0),
    call("critic 0", "values", 5.0, 8.0, 4.0),
    call("actor 0", "logprobs", 2.0, 2.5, 2.0),
    call("actor 0", "logprobs", 4.0, 4.5, 4.0),
    call("critic 0", "update", 8.5, 9.0, 8.5),
    call("actor 0", "update", 8.5, 9.5, 8.5),
    call("actor 0", "push", 9.5, 10.0, 9.5),
    call("rollout 0", "update_weights", 9.6, 9.9, 9.6, by="actor 0"),
    phases=(
        ("generate", 0.0, 4.0),
        ("score", 4.0, 8.0),
        ("experience", 8.0, 8.5),
        ("update", 8.5, 9.5),
        ("push", 9.5, 10),
    ),
)
"""Two parts of three seconds' scoring each, of which the second waits for the critic; half a second of the driver."""


def test_a_rank_waits_for_whoever_answered_last_before_it_was_asked() -> None:
    idle = {who: [(t.began, t.ended, t.waits_for) for t in times] for who, times in idle_times(SPLIT).items()}
    assert idle["critic 0"] == [
        (0.0, 2.0, "rollout"),
        (8.0, 8.5, THE_DRIVER),
        (9.0, 10.0, "actor"),
    ]
    assert idle["actor 0"] == [
        (0.0, 2.0, "rollout"),
        (2.5, 4.0, "rollout"),
        (4.5, 8.0, "critic"),
        (8.0, 8.5, THE_DRIVER),
    ]
    assert idle["rollout 0"] == [(4.0, 9.6, "actor"), (9.9, 10.0, "actor")]


def test_what_a_rank_does_and_waits_for_adds_up_to_the_step() -> None:
    for role, own in shares(SPLIT).items():
        assert sum(own.values()) == pytest.approx(1), role
    assert shares(SPLIT)["critic"] == pytest.approx({"busy": 0.65, "rollout": 0.2, "driver": 0.05, "actor": 0.1})
    random.seed(0)
    for _ in range(50):
        calls = []
        for rank in range(3):  # those of one rank do not overlap
            moments = iter(sorted(random.uniform(-2, 12) for _ in range(12)))
            calls += [call(f"critic {rank}", "m", first, next(moments), first - random.random()) for first in moments]
        for who, idle in idle_times(course(*calls)).items():
            own = [c for c in calls if c.who == who and c.ended > 0 and c.began < 10]
            worked = sum(min(c.ended, 10) - max(c.began, 0) for c in own)
            assert worked + sum(t.ended - t.began for t in idle) == pytest.approx(10)


def test_the_critical_path_leads_from_the_end_to_the_beginning_without_a_gap() -> None:
    links = critical_path(SPLIT)
    assert [(link.who, link.what, link.began, link.ended, link.calls) for link in links] == [
        ("rollout 0", "rollout stream", 0.0, 2.0, 1),
        ("critic 0", "critic values", 2.0, 8.0, 2),
        (THE_DRIVER, "experience", 8.0, 8.5, 1),
        ("actor 0", "actor update", 8.5, 9.5, 1),
        ("actor 0", "actor push", 9.5, 10.0, 1),
    ]
    assert links[0].began == 0.0 and links[-1].ended == 10.0
    assert all(one.ended == other.began for one, other in pairwise(links))


def test_what_would_be_gained() -> None:
    """By hand: without the critic's values the second part's log-probabilities end at 4.5; without generating, both
    parts are there at once and the critic is done after 6; the actor's passes hide behind the critic's."""
    assert seconds_without(SPLIT, None) == pytest.approx(10)
    assert gains(SPLIT) == pytest.approx(
        {
            "critic values": 3.5,
            "rollout stream": 2.0,
            "actor update": 0.5,
            THE_DRIVER: 0.5,
            "actor push": 0.5,
            "actor logprobs": 0.0,
            "critic update": 0.0,
        }
    )


def test_a_part_is_scored_without_waiting_for_the_scores_of_another() -> None:
    """The reference's part was asked for when the critic had done its own, but because the engine had: without
    generating it would not wait for the critic."""
    step = course(
        call("rollout 0", "stream", 0.0, 1.0, 0.0),
        call("critic 0", "values", 1.0, 6.0, 1.0),
        call("rollout 0", "stream", 1.0, 7.0, 0.0),
        call("reference 0", "logprobs", 7.0, 10.0, 7.0),
        phases=(("generate", 0.0, 7.0), ("score", 7.0, 10.0)),
    )
    assert seconds_without(step, "rollout stream") == pytest.approx(5.0)


def test_nothing_free_gains_nothing() -> None:
    random.seed(1)
    for _ in range(50):
        moment, calls = 0.0, []
        for _ in range(30):
            began = moment + random.random()
            rank = random.randrange(3)
            own = max((c.ended for c in calls if c.rank == rank), default=0.0)
            calls.append(call(f"critic {rank}", "m", max(began, own), max(began, own) + random.random(), moment))
            moment = max(moment, random.choice(calls).ended)
        end = max(c.ended for c in calls) + 0.5
        whole = course(*calls, ended=end)
        assert seconds_without(whole, None) == pytest.approx(end)
        assert 0.0 <= seconds_without(whole, "critic m") <= end
        path = critical_path(whole)
        assert path[0].began == 0.0 and path[-1].ended == end
        assert all(one.ended == pytest.approx(other.began) for one, other in pairwise(path))
