"""The engines of a judge that is a language model: questions flow in, answers flow out, each once, also when engines
fail meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from orchestrator.groups.recovery import Recovery, TellUser, untold
from orchestrator.groups.resolved_models import Models
from roles.judge_engine import EngineAnswer, EngineQuestion, JudgeEngine


@dataclass(slots=True)
class JudgeFleet:
    """Engines with the same model. One that fails is started again."""

    engines: RoleGroup[JudgeEngine]
    deadlines: Deadlines
    recovery: Recovery
    fleet: EngineFleet = field(init=False)

    def __post_init__(self) -> None:
        self.fleet = EngineFleet(self.engines, self.deadlines, self.recovery, sleeps=False)

    def answers(self, questions: Sequence[EngineQuestion]) -> Iterator[EngineAnswer]:
        """An answer to each question, in any order. What an engine that fails has not answered is asked once more when
        the others are done."""
        left = {question.row: question for question in questions}
        while left:
            usable, failed = self.fleet.usable(version=0), False
            shares = {number: list(left.values())[place :: len(usable)] for place, number in enumerate(usable)}
            running = self.engines.streaming(self.deadlines.generate_s)
            for number, share in shares.items():
                running.begin(number, number, JudgeEngine.answers, share)
            while True:
                try:
                    found = next(running, None)
                except ClusterError as error:
                    self.fleet.fence(error)
                    failed = True
                    for number in {who.rank for who in error.blamed}:
                        self.fleet.lost(number, sum(question.row in left for question in shares[number]))
                    continue
                if found is None:
                    break
                answer: EngineAnswer = found[1]
                del left[answer.row]
                yield answer
            if left and not failed:
                raise TetrarchError(f"the engines ended without an answer to {len(left)} questions")
        self.recovery.drain()  # a deadline that passes later has nothing to do with these


@contextmanager
def judge_engines(config: SamplingConfig, models: Models, tell: TellUser = untold) -> Iterator[JudgeFleet]:
    """Context with the engines, up. `tell`: see `Builder`."""
    with builder(config, {ENGINES: None}, tell) as build:
        engines = build.engines(models, JudgeEngine, replaceable=config.recovery.engine_failures_per_hour > 0)
        build.ready()
        yield JudgeFleet(engines, config.deadlines, build.recovery)
