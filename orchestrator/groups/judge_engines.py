"""The engines of a judge that is a language model: questions flow in, answers flow out, each once, also when engines
fail meanwhile; and which questions engines fail with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.config import Deadlines
from cluster.errors import ClusterError
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ENGINES
from orchestrator.config.sampling import SamplingConfig
from orchestrator.errors import TetrarchError
from orchestrator.groups.build import builder
from orchestrator.groups.engine_fleet import EngineFleet
from orchestrator.groups.question_trials import QuestionTrials
from orchestrator.groups.recovery import Recovery, TellUser, untold
from orchestrator.groups.resolved_models import Models
from roles.generation.sampling import Reply
from roles.judge_engine import EngineAnswer, EngineQuestion, JudgeEngine

PROBE_QUESTION = EngineQuestion(-1, [0], Reply(1))
"""A question that nobody has: its answer shows that an engine is sound."""


@dataclass(frozen=True, slots=True)
class FatalQuestion:
    """A question that is not asked any more, since engines fail with it."""

    row: int


@dataclass(slots=True)
class JudgeFleet:
    """Engines with the same model. One that fails is started again."""

    engines: RoleGroup[JudgeEngine]
    deadlines: Deadlines
    recovery: Recovery
    fleet: EngineFleet = field(init=False)

    def __post_init__(self) -> None:
        self.fleet = EngineFleet(self.engines, self.deadlines, self.recovery, sleeps=False)

    def answers(self, questions: Sequence[EngineQuestion]) -> Iterator[EngineAnswer | FatalQuestion]:
        """An answer to each question, in any order. What an engine that fails has not answered is asked once more when
        the others are done; see `QuestionTrials`."""
        left, trials = {question.row: question for question in questions}, QuestionTrials(self.recovery)
        while left or trials.open:
            usable, failed = self.fleet.usable(version=0), False
            if trials.open:  # before another question is blamed
                left[PROBE_QUESTION.row] = PROBE_QUESTION
                shares = {usable[0]: [PROBE_QUESTION]}
            else:
                shares = _shares(left, trials, usable)
            running = self.engines.streaming(self.deadlines.generate_s)
            for number, share in shares.items():
                running.begin(number, number, JudgeEngine.answers, share)
            while True:
                try:
                    found = next(running, None)
                except ClusterError as error:
                    self.fleet.fence(error)
                    failed = True
                    for number in {who.rank for who in error.blamed} & shares.keys():
                        lost = [question.row for question in shares[number] if question.row in left]
                        self.fleet.lost(number, len(lost))
                        for row in trials.failed([row for row in lost if row != PROBE_QUESTION.row]):
                            del left[row]
                    continue
                if found is None:
                    break
                answer: EngineAnswer = found[1]
                del left[answer.row]
                if answer.row != PROBE_QUESTION.row:
                    yield answer
                yield from map(FatalQuestion, trials.answered(answer.row))
            unanswered = sum(question.row in left for share in shares.values() for question in share)
            if unanswered and not failed:
                raise TetrarchError(f"the engines ended without an answer to {unanswered} questions")
        self.recovery.drain()  # a deadline that passes later has nothing to do with these


def _shares(
    left: Mapping[int, EngineQuestion], trials: QuestionTrials, usable: Sequence[int]
) -> dict[int, list[EngineQuestion]]:
    """Engine → what it is asked next: all with which none has failed, or after these a few of the others."""
    free = [question for question in left.values() if trials.most(question.row) == math.inf]
    if free:
        return {number: free[place :: len(usable)] for place, number in enumerate(usable)}
    rest, shares = sorted(left.values(), key=lambda question: trials.most(question.row)), {}
    for number in usable:
        size = int(trials.most(rest[0].row)) if rest else 0
        shares[number], rest = rest[:size], rest[size:]
    return shares


@contextmanager
def judge_engines(config: SamplingConfig, models: Models, tell: TellUser = untold) -> Iterator[JudgeFleet]:
    """Context with the engines, up. `tell`: see `Builder`."""
    with builder(config, {ENGINES: None}, tell) as build:
        engines = build.engines(models, JudgeEngine, replaceable=config.recovery.engine_failures_per_hour > 0)
        build.ready()
        yield JudgeFleet(engines, config.deadlines, build.recovery)
