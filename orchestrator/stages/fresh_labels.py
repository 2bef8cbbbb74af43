"""The gold judge of a retraining: responses flow in, compared responses flow out, with soft labels of an endpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.config.labelling import ANSWERS, AskingBudgetConfig, EndpointJudge
from orchestrator.config.retraining import RetrainingConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.answer_file import open_answers
from orchestrator.data.judge_prompts import JudgeAnswer, comparison, first_is_better
from orchestrator.data.labels import JudgeVerdict
from orchestrator.errors import TetrarchError
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward import Member
from orchestrator.groups.scoring import Roles
from orchestrator.groups.spread import wait_for
from orchestrator.run.endpoint_key import endpoint_key
from orchestrator.stages.asked_endpoint import AskedEndpoint
from orchestrator.stages.asking import Asking
from orchestrator.stages.sampled_pairs import by_score
from roles.batch import Preferences, Rollouts
from roles.text.messages import MESSAGES

Labels = Callable[[Rollouts], Preferences]
"""Responses, of which so many consecutive ones answer the same prompt → comparisons."""


@contextmanager
def fresh_labels(config: RunConfig, roles: Roles) -> Iterator[Labels | None]:
    """Context with the judge of `retraining`; None without that section."""
    settings = config.retraining
    if settings is None:
        yield None
    elif isinstance(settings.judge, EndpointJudge):
        judge = settings.judge
        asked = AskedEndpoint(judge, endpoint_key(judge, "retraining.judge"))
        with open_answers(Path(config.run_dir) / ANSWERS) as file:
            yield AskedPairs(settings, judge, Asking(asked, file, AskingBudgetConfig(), judge.prices))
    else:
        assert roles.labeller is not None
        judged = (roles.labeller, settings.responses_per_prompt, config.deadlines.score_s)
        yield Judged(*judged, roles.policy.recovery)


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge that gives each response a score."""

    judge: Member
    each: int
    """Responses to a prompt."""
    deadline_s: float
    recovery: Recovery

    def __call__(self, rollouts: Rollouts) -> Preferences:
        running = self.judge.start(rollouts)
        wait_for([running], self.deadline_s, self.recovery)
        return by_score(rollouts, running.result(self.deadline_s), self.each)


@dataclass(frozen=True, slots=True)
class AskedPairs:
    """An endpoint that compares two responses at a time. What it has answered once is not asked again, also by a run
    that goes on."""

    settings: RetrainingConfig
    judge: EndpointJudge
    asking: Asking

    def __call__(self, rollouts: Rollouts) -> Preferences:
        """Each pair on which the judge decides is a group of its own, the better response first."""
        pairs = self._pairs(rollouts)
        questions = [
            comparison(self.settings.question, *self._shown(rollouts, *order), self.judge.answer_tokens)
            for pair in pairs
            for order in (pair, pair[::-1])
        ]
        answers = self.asking.answers(questions)
        if self.asking.stopped is not None:
            raise TetrarchError(
                f"retraining.judge: {self.asking.stopped}; what it has answered is kept, and a run that goes on asks "
                "the rest"
            )
        rows, certainty = list[int](), list[float]()
        for (first, second), own in zip(pairs, zip(answers[::2], answers[1::2], strict=True), strict=True):
            probability = self._verdict(*own)
            if probability is not None and probability != 0.5:
                rows += [first, second] if probability > 0.5 else [second, first]
                certainty += [max(probability, 1 - probability)] * 2
        chosen = rollouts.select(rows)
        groups, ranks = torch.arange(len(rows)) // 2, (torch.arange(len(rows)) % 2 == 0).float()
        return Preferences(chosen.token_ids, chosen.lengths, groups, ranks, torch.tensor(certainty))

    def _pairs(self, rollouts: Rollouts) -> list[tuple[int, int]]:
        """Rows of every two different responses to the same prompt."""
        each, said = self.settings.responses_per_prompt, rollouts.responses
        groups = (range(first, first + each) for first in range(0, len(rollouts), each))
        pairs = itertools.chain.from_iterable(itertools.combinations(group, 2) for group in groups)
        return [(first, second) for first, second in pairs if said[first] != said[second]]

    def _shown(self, rollouts: Rollouts, first: int, second: int) -> tuple[str, tuple[str, str]]:
        chats = rollouts.columns.get(MESSAGES)
        prompt = chats[first] if chats and chats[first] is not None else rollouts.prompts[first]
        return prompt, (rollouts.responses[first], rollouts.responses[second])

    def _verdict(self, forward: JudgeAnswer | None, backward: JudgeAnswer | None) -> float | None:
        """Probability that the first response is better; None for a refused question and an abstention."""
        if forward is None or backward is None:
            return None
        mass = self.settings.minimum_mass
        return JudgeVerdict(first_is_better(forward, mass), first_is_better(backward, mass)).probability
