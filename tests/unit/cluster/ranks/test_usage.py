"""What a rank reports, on the driver's clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.ranks import node_clocks, usage
from cluster.ranks.card_use import CardSample, CardUse
from cluster.ranks.identity import Identity
from cluster.ranks.node_clocks import FIRST, KEPT, NodeClocks
from cluster.ranks.usage import CallOrigin, InnerSpan, RankCall, RankUsage
from cluster.ranks.watch import Rank


class Time:
    """A clock that goes on only when something is asked."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(node_clocks, "time", made)
    return made


def rank(clock: Time, name: str, node: str, ahead: float = 0.0, trips: list[float] | None = None) -> Rank:
    """A rank whose node's clock is ahead; the way to it takes the next of `trips`, the way back nothing."""
    trips = [] if trips is None else trips

    def now() -> float:
        clock.now += trips.pop(0) if trips else 0.001
        return clock.now + ahead

    role, _, number = name.partition(" ")
    worker = SimpleNamespace(now=SimpleNamespace(remote=now))
    return Rank(Identity(role, int(number), node, "log"), worker, None, node_id=node)


def clocks(answers: Any = enumerate) -> NodeClocks:
    return NodeClocks(here=lambda: "here", answers=answers)


def test_the_clock_of_another_node_is_measured(clock: Time) -> None:
    nodes = [("actor 0", "here", 5.0), ("rollout 0", "there", 3.0), ("rollout 1", "late", -40.0)]
    ranks = [rank(clock, *node) for node in nodes]
    assert clocks().ahead(ranks) == pytest.approx({"actor 0": 0.0, "rollout 0": 3.0, "rollout 1": -40.0}, abs=0.005)


def test_the_shortest_way_counts(clock: Time) -> None:
    """A long way there, and none back: half of it is the error."""
    slow = [0.05] * (FIRST - 1) + [0.0] + [0.05] * 5
    there, found = rank(clock, "rollout 0", "there", 3.0, slow), clocks()
    for _ in range(5):
        assert found.ahead([there])["rollout 0"] == pytest.approx(3.0, abs=1e-6)
    assert len(slow) < 5 and KEPT > FIRST


def test_all_nodes_are_asked_at_once_and_one_that_does_not_answer_keeps_what_was_known(clock: Time) -> None:
    asked = list[int]()

    def answers(references: Any) -> Any:
        asked.append(len(references))
        return [(number, answer) for number, answer in enumerate(references) if answer is not None]

    found = clocks(answers)
    ranks = [rank(clock, "rollout 0", "silent", 3.0), rank(clock, "rollout 1", "there", 2.0)]
    speaking, silent = ranks[0].worker.now, SimpleNamespace(remote=lambda: None)
    looks = []
    for now in (silent, speaking, silent):
        ranks[0].worker.now = now
        looks.append((found.ahead(ranks), asked.copy()))
        asked.clear()
    late, there = pytest.approx(3.0, abs=0.005), pytest.approx(2.0, abs=0.005)
    first = [2, *[1] * (FIRST - 1)]
    assert looks == [
        ({"rollout 0": 0.0, "rollout 1": there}, first),
        ({"rollout 0": late, "rollout 1": there}, first),
        ({"rollout 0": late, "rollout 1": there}, [2]),
    ]


def test_all_times_of_a_report_are_shifted() -> None:
    cards = CardUse("H100", [CardSample(12.0, 1, None)], 1, 1)
    busy = [RankCall(12.0, 13.0, "push", CallOrigin(9.0, "")), RankCall(13.0, 14.0, "m", CallOrigin(15.0, "actor 0"))]
    inner = [InnerSpan(12.5, 12.75, "gather", 1, {})]
    there = RankUsage(1, busy, {12: 7}, cards, inner, 1)
    who = Identity("rollout", 0, "there", "log")
    assert there.shifted({"rollout 0": 0.0, "actor 0": 0.0}, who) is there
    moved = there.shifted({"rollout 0": 2.0, "actor 0": 4.0}, who)
    assert moved.busy == [
        RankCall(10.0, 11.0, "push", CallOrigin(9.0, "")),
        RankCall(11.0, 12.0, "m", CallOrigin(11.0, "actor 0")),
    ]
    assert moved.inner == [InnerSpan(10.5, 10.75, "gather", 1, {})] and moved.series == {10: 7}
    assert moved.cards is not None and moved.cards.samples[0].at == 10.0


def test_a_report_has_what_happened_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    usage.drained(usage.WAITS)
    usage.WAITS.append(InnerSpan(1.0, 2.0, "waits for rollout", 1, {}))
    assert usage.reported(lambda: [(3.0, 4.0, "forward", 1, {})]) == [
        InnerSpan(1.0, 2.0, "waits for rollout", 1, {}),
        InnerSpan(3.0, 4.0, "forward", 1, {}),
    ]
    assert usage.reported(None) == []
