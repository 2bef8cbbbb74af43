"""A reward without its models: what is added to the scores."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.groups.reward import Member, Reward
from roles.batch import Responses
from roles.config.rewards import MeanScore
from tests.unit.orchestrator.fakes import FakeGroup, prompts_of, rollouts_of


def test_only_responses_of_a_run_have_been_paid_for() -> None:
    made = rollouts_of(prompts_of(3), 0)
    paid = replace(made, turn_rewards=0.5 * made.response_mask)
    scoring = Reward({"reward": Member(FakeGroup("reward", []))}, MeanScore())  # type: ignore[arg-type]
    for reward, scores in ((scoring, [0.0, 1.0, 2.0]), (Reward({}, MeanScore()), [0.0] * 3)):
        found, apart = reward.start(Responses.of(paid)).result(1.0)
        assert found.tolist() == scores and not apart.any()
        found, apart = reward.start(paid).result(1.0)
        assert found.tolist() == [1.5 + score for score in scores] and not apart.any()
