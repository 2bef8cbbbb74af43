"""A judge at an endpoint that compares responses with another run's: rollouts flow in, win rates flow out. Each answer
is kept in `run_dir`, so that nothing is asked or paid for twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from orchestrator.config.evaluation import EvaluationRun, WinRate
from orchestrator.config.labelling import AskingBudgetConfig
from orchestrator.data.answer_file import open_answers
from orchestrator.data.judge_prompts import JudgeAnswer, comparison, first_is_better
from orchestrator.data.labels import JudgeVerdict
from orchestrator.data.opponents import given_prompts, identity, read_opponent
from orchestrator.errors import TetrarchError
from orchestrator.report.run_files import VERDICTS
from orchestrator.run.endpoint_key import endpoint_key
from orchestrator.stages.asked_endpoint import AskedEndpoint
from orchestrator.stages.asking import Asking
from roles.batch import Rollouts

Compare = Callable[[Rollouts], list[float | None]]
"""Rollouts → probability of each response to be better than the other run's; None where the judge has not decided."""


def comparing(config: EvaluationRun) -> Compare | None:
    """What gives the gold scores; None unless `evaluation.judge` is a win rate."""
    judge = config.evaluation.judge
    return partial(win_rates, judge, Path(config.run_dir) / VERDICTS) if isinstance(judge, WinRate) else None


def win_rates(config: WinRate, file: Path, rollouts: Rollouts) -> list[float | None]:
    """Ask in both orders about each response; answers that `file` has are not asked for again."""
    others, prompts = read_opponent(config), given_prompts(rollouts.prompts, rollouts.columns)
    questions = []
    for prompt, response in zip(prompts, rollouts.responses, strict=True):
        shown = (response, others[identity(prompt)])
        tokens = config.asks.answer_tokens
        questions += [comparison(config.question, prompt, order, tokens) for order in (shown, shown[::-1])]
    with open_answers(file) as answers:
        judge = AskedEndpoint(config.asks, endpoint_key(config.asks, "evaluation.judge.asks"))
        asking = Asking(judge, answers, AskingBudgetConfig(), None)
        found = asking.answers(questions)
    if asking.stopped is not None:
        raise TetrarchError(f"evaluation.judge: {asking.stopped}; what it has answered is kept in {file}")
    return [_verdict(pair, config.minimum_mass) for pair in zip(found[::2], found[1::2], strict=True)]


def _verdict(answers: tuple[JudgeAnswer | None, JudgeAnswer | None], minimum_mass: float) -> float | None:
    forward, backward = (None if one is None else first_is_better(one, minimum_mass) for one in answers)
    return JudgeVerdict(forward, backward).probability
