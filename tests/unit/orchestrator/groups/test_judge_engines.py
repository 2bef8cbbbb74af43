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
from orchestrator.groups.judge_engines import JudgeFleet
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
    assert engines.asked == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7]), (0, [3, 7]), (1, [5])]
    assert told[0] == "rollout rank 1 (node node) is started again: it died in answers"
    assert told[1].startswith("rollout rank 1 (node node) is back") and told[1].endswith("that were moved: 3")


def test_failures_are_counted_and_a_second_deadline_ends_it() -> None:
    made, _ = fleet(Engines({0: [0, 0, 0]}), allowed=2)
    with pytest.raises(Death, match=r"number 3 within an hour, and recovery\.engine_failures_per_hour=2"):
        list(made.answers(QUESTIONS))
    late = Engines({0: [0, 0]}, error=lambda who: DeadlineExceeded("rollout.answers did not end within 4 s:", [who]))
    with pytest.raises(DeadlineExceeded, match="second deadline"):
        list(fleet(late)[0].answers(QUESTIONS))


def test_engines_that_leave_questions_out_are_not_asked_for_ever() -> None:
    made, _ = fleet(Engines(silent=True))
    with pytest.raises(TetrarchError, match="without an answer to 8 questions"):
        list(made.answers(QUESTIONS))
