"""Engines of a judge that fail: every question is answered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Deadlines
from cluster.errors import ClusterError, DeadlineExceeded
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.errors import TetrarchError
from orchestrator.groups.engine_fleet import BUDGET
from orchestrator.groups.judge_engines import FatalQuestion, JudgeFleet
from orchestrator.groups.recovery import Recovery
from roles.generation.sampling import Reply
from roles.judge_engine import EngineAnswer, EngineQuestion

QUESTIONS = [EngineQuestion(row, [row], Reply(1)) for row in range(8)]


@dataclass
class Engines:
    """Engines that fail when they are told to."""

    fails: dict[int, list[int]] = field(default_factory=dict)
    """Engine → after how many answers its next calls fail."""
    error: Callable[[Identity], ClusterError] = lambda who: Death(f"{who} died in answers", who=who)
    asked: list[tuple[int, list[int]]] = field(default_factory=list)
    silent: bool = False
    fatal: frozenset[int] = frozenset()
    """Questions with which every engine dies."""
    sick: bool = False
    """Whether every engine dies with whatever it is asked from now on."""
    role: str = "rollout"

    def __post_init__(self) -> None:
        self.ranks = [SimpleNamespace(identity=Identity("rollout", n, "node", "log")) for n in range(2)]

    def __len__(self) -> int:
        return 2

    def check_alive(self, numbers: list[int]) -> None:
        pass

    def restart(self, numbers: list[int]) -> Any:
        for number in numbers:
            old = self.ranks[number].identity
            self.ranks[number] = SimpleNamespace(identity=replace(old, life=old.life + 1))
        return SimpleNamespace(over=True, result=lambda deadline_s: None)

    def streaming(self, deadline_s: float) -> Engines:
        self.running: list[Iterator[Any]] = []
        return self

    def begin(self, key: Any, number: int, method: Any, share: list[EngineQuestion]) -> None:
        self.asked.append((number, [question.row for question in share]))
        failing = self.fails.get(number)
        self.running.append(self._answers(number, share, failing.pop(0) if failing else len(share)))

    def __next__(self) -> tuple[int, EngineAnswer]:
        while self.running:
            answers = self.running.pop(0)
            found = next(answers, None)
            if found is not None:
                self.running.append(answers)
                return found
        raise StopIteration

    def _answers(self, number: int, share: list[EngineQuestion], most: int) -> Iterator[Any]:
        for question in [] if self.silent else share[:most]:
            if question.row in self.fatal or self.sick:
                raise self.error(self.ranks[number].identity)
            yield number, EngineAnswer(question.row, [1], {}, cut=False)
        if most < len(share):
            raise self.error(self.ranks[number].identity)


def fleet(engines: Any, allowed: int = 6) -> tuple[JudgeFleet, list[str]]:
    told = list[str]()
    recovery = Recovery(RecoveryConfig(engine_failures_per_hour=allowed), told.append)
    return JudgeFleet(engines, Deadlines(), recovery), told


@pytest.mark.parametrize("fails", [{}, {1: [1]}, {0: [0], 1: [3]}, {1: [1, 0]}])
def test_every_question_is_answered_once(fails: dict[int, list[int]]) -> None:
    made, _ = fleet(Engines(fails))
    assert sorted(answer.row for answer in made.answers(QUESTIONS)) == list(range(8))


def test_what_a_dead_engine_left_is_shared_out_and_told() -> None:
    engines = Engines({1: [1]})
    made, told = fleet(engines)
    assert len(list(made.answers(QUESTIONS))) == 8
    assert engines.asked == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7]), (0, [3]), (1, [5]), (0, [7]), (1, [])]
    assert told[0] == "rollout rank 1 (node node) is started again: it died in answers"
    assert told[1].startswith("rollout rank 1 (node node) is back") and told[1].endswith("that were moved: 3")


def test_failures_are_counted_and_a_second_deadline_ends_it() -> None:
    made, _ = fleet(Engines({0: [0, 0, 0]}), allowed=2)
    with pytest.raises(Death, match=r"number 3 within an hour, and recovery\.engine_failures_per_hour=2"):
        list(made.answers(QUESTIONS))
    late = Engines({0: [0, 0]}, error=lambda who: DeadlineExceeded("rollout.answers did not end within 4 s:", [who]))
    with pytest.raises(DeadlineExceeded, match="second deadline"):
        list(fleet(late)[0].answers(QUESTIONS))


def many(count: int) -> list[EngineQuestion]:
    return [EngineQuestion(row, [row], Reply(1)) for row in range(count)]


@pytest.mark.parametrize("fatal", [{0}, {399}, {3, 4, 5}, {7, 100, 101, 250, 399}, {1, 2, 3, 4, 5, 6, 7, 8}])
def test_questions_that_kill_engines_are_given_up_and_cost_the_command_nothing(fatal: set[int]) -> None:
    """However many they are: of each, three failures, which are not counted."""
    engines = Engines(fatal=frozenset(fatal))
    made, told = fleet(engines)
    found = list(made.answers(many(400)))
    given_up = [answer.row for answer in found if isinstance(answer, FatalQuestion)]
    answered = [answer.row for answer in found if isinstance(answer, EngineAnswer)]
    assert set(given_up) == fatal and sorted([*answered, *given_up]) == list(range(400))
    assert len([line for line in told if "is started again" in line]) <= 3 * len(fatal)
    assert any("given up: " in line and "not counted: " in line for line in told)
    assert len(engines.asked) < 60 * len(fatal), "most are asked in company"
    assert not made.recovery._failures[BUDGET], "none is counted"


def test_one_question_alone_is_given_up_only_if_the_engines_answer_another() -> None:
    engines = Engines(fatal=frozenset({5}))
    made, _ = fleet(engines)
    assert list(made.answers([QUESTIONS[5]])) == [FatalQuestion(5)]
    assert [rows for _, rows in engines.asked if rows] == [[5]] * 3 + [[-1]]
    sick, _ = fleet(Engines(sick=True))
    with pytest.raises(Death, match="number 7 within an hour"):
        list(sick.answers([QUESTIONS[5]]))


def test_engines_that_die_with_everything_end_it_and_no_question_is_blamed() -> None:
    made, _ = fleet(Engines(sick=True))
    found = list[Any]()
    with pytest.raises(Death, match="number 7 within an hour"):
        found.extend(made.answers(many(400)))
    assert not found


def test_engines_that_leave_questions_out_are_not_asked_for_ever() -> None:
    made, _ = fleet(Engines(silent=True))
    with pytest.raises(TetrarchError, match="without an answer to 8 questions"):
        list(made.answers(QUESTIONS))
