"""The retraining of a reward model during PPO, on groups that answer at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.groups.spread
from cluster.config import Deadlines
from orchestrator.config.labelling import AskingBudgetConfig, EndpointJudge
from orchestrator.config.retraining import RetrainingConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.answer_file import open_answers
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion
from orchestrator.data.prompts import Questions
from orchestrator.errors import TetrarchError
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward import Member
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.state import TrainState
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.asking import Asking, JudgeDown, Refusal
from orchestrator.stages.fresh_labels import AskedPairs, Judged
from orchestrator.stages.retraining import Retraining, told
from orchestrator.stages.sampled_pairs import by_score
from roles.batch import Preferences, Rollouts
from roles.reward_trainer import RewardStats
from tests.unit.orchestrator.fakes import Answers, FakeGroup, prompts_of, rollouts_of, write_waits

JUDGE = {"type": "function", "path": "judge.py"}


def settings(**changed: Any) -> RetrainingConfig:
    given = {"every": 2, "judge": JUDGE, "prompts": 3, "groups_per_step": 2, "epochs": 2, "pinned": 4, **changed}
    return RetrainingConfig.model_validate(given)


@dataclass
class RewardGroup:
    """Ranks of a reward model whose score of a row is its first token times a weight, which each update doubles."""

    log: list[str]
    weight: float = 1.0
    learned: list[list[Preferences]] = field(default_factory=list)

    def __len__(self) -> int:
        return 2

    def map(self, method: Any, shards: list[Any]) -> Answers:
        rows = sum(map(len, shards))
        self.log.append(f"{method.__name__} {rows}")
        if method.__name__ == "score":
            return Answers([shard.token_ids[:, 0].float() * self.weight for shard in shards])
        self.weight *= 2
        self.learned.append(shards)
        return Answers([RewardStats(loss=self.weight, accuracy=0.5, gradient_norm=3.0, learning_rate=0.1)] * 2)


def retraining(log: list[str], labels: Any, **changed: Any) -> Retraining:
    policy = Policy(FakeGroup("rollout", log), Deadlines(), environment=False)  # type: ignore[arg-type]
    reward = SimpleNamespace(members={"reward": SimpleNamespace(group=RewardGroup(log))})
    roles: Any = SimpleNamespace(policy=policy, reward=reward)
    config: Any = SimpleNamespace(retraining=settings(**changed), seed=5, deadlines=Deadlines())
    questions = Questions([[row, 1] for row in range(9)], ["p"] * 9, {}, "")
    return Retraining(config, roles, questions, labels)


def state(step: int, **changed: Any) -> TrainState:
    return TrainState(SimpleNamespace(), FixedController(0.1), step=step, warm_at=0, **changed)  # type: ignore[arg-type]


def by_token(rollouts: Rollouts) -> Preferences:
    """Of each two responses the second is better; the third prompt's are equal."""
    ranks = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    groups = torch.arange(6) // 2
    return Preferences(rollouts.token_ids, rollouts.lengths, groups, ranks, torch.ones(6))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(orchestrator.groups.spread, "wait_all", write_waits(lines))
    return lines


def clock_of(log: list[str]) -> Clock:
    return Clock(lambda phase: log.append(f"[{phase}]"))


def test_the_order_of_calls_and_what_is_told(log: list[str]) -> None:
    again, now = retraining(log, by_token), state(2)
    now.scale.update(torch.tensor([3.0, 5.0]))
    metrics = again.before_step(now, clock_of(log))
    assert log == [
        "[label]",
        "start rollout.generate",
        "[retrain]",
        "score 4",  # the pinned ones
        "score 4",  # of the fresh ones those that are compared
        *("update 4", "update 4"),  # two passes
        "score 4",
    ]
    assert metrics["retraining/comparisons"] == 2 and metrics["retraining/accuracy"] == 0.0, "both rows score the same"
    assert (metrics["retraining/loss"], metrics["lr/reward"]) == (3.0, 0.1)
    assert metrics["retraining/pinned_mean"] == 4 * metrics["retraining/pinned_mean_before"]
    assert metrics["retraining/pinned_rank_correlation"] == pytest.approx(1.0)
    assert now.scale.state_dict()["count"] == 0, "scores are normalised by new ones"
    assert "before step 3 the reward model was retrained on 2 comparisons" in told(metrics, 2)
    for shards in again.group.learned:  # type: ignore[attr-defined]
        assert sorted(group for shard in shards for group in shard.groups.tolist()) == [0, 0, 1, 1]


def test_the_pinned_responses_stay_those_of_the_first_retraining(log: list[str]) -> None:
    again = retraining(log, by_token)
    assert again.before_step(state(1), clock_of(log)) == {} and again.pinned == []
    again.before_step(state(2), clock_of(log))
    first = [list(ids) for ids in again.pinned]
    assert len(first) == 4 and all(len(ids) == 5 for ids in first)
    other = retraining(log, by_token)
    other.load_state_dict(again.state_dict())
    for one in (again, other):
        one.before_step(state(4), clock_of(log))
        assert one.pinned == first
    assert retraining(log, by_token).state_dict() == {"pinned": []}


def test_what_is_drawn_follows_from_seed_and_step(log: list[str]) -> None:
    drawn = []
    for step in (2, 2, 4):
        again = retraining(log, by_token)
        again.before_step(state(step), clock_of(log))
        asked = again.roles.policy.engines.seen[-1]  # type: ignore[attr-defined]
        order = [shard.groups.tolist() for shards in again.group.learned for shard in shards]  # type: ignore[attr-defined]
        drawn.append(([(shard.token_ids, shard.seeds) for shard in asked], order))
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_a_preference_nothing_is_learned(log: list[str]) -> None:
    def equal(rollouts: Rollouts) -> Preferences:
        return replace(by_token(rollouts), ranks=torch.zeros(6))

    driver = state(2)
    scale = driver.scale
    metrics = retraining(log, equal).before_step(driver, clock_of(log))
    assert driver.scale is scale, "the scores mean what they meant"
    assert not [line for line in log if line.startswith("update")]
    assert metrics["retraining/comparisons"] == 0 and "retraining/accuracy" not in metrics
    assert metrics["retraining/pinned_mean"] == metrics["retraining/pinned_mean_before"]
    assert "stays as it is" in told(metrics, 2)


def test_when_it_is_due_and_when_the_critic_is_trained_alone() -> None:
    config = settings(every=4, critic_steps=2)
    run: Any = SimpleNamespace(retraining=config, ppo=SimpleNamespace(uses_critic=True), steps=12)
    run.critic_alone = lambda step, warm_at: RunConfig.critic_alone(run, step, warm_at)
    assert [step for step in range(12) if config.due(step, 0)] == [4, 8]
    assert [step for step in range(12) if config.due(step, 5)] == [8]
    assert [step for step in range(12) if config.due(step, 4)] == [8], "the actor has not moved before step 4"
    assert not any(config.due(step, None) for step in range(12)), "the critic warms up"
    assert [step for step in range(12) if run.critic_alone(step, 0)] == [4, 5, 8, 9]
    assert [step for step in range(5, 12) if run.critic_alone(step, 5)] == [8, 9]
    assert (RunConfig.actor_steps(run, 0), RunConfig.actor_steps(run, 5)) == (8, 5)
    run.ppo.uses_critic = False
    assert RunConfig.actor_steps(run, 0) == 12
    assert settings(prompts=5, groups_per_step=2, epochs=3).optimizer_steps == 9
    asked = {"type": "endpoint", "url": "http://h/v1/completions", "model": "m"}
    assert settings(judge=asked, prompts=5, responses_per_prompt=3, groups_per_step=2).optimizer_steps == 2 * 8


def test_a_function_scores_and_its_order_counts(log: list[str]) -> None:
    rollouts = rollouts_of(prompts_of(4), 0)
    pairs = Judged(Member(FakeGroup("labeller", log)), 2, 1.0, Recovery())(rollouts)  # type: ignore[arg-type]
    assert (pairs.ranks.tolist(), pairs.groups.tolist()) == ([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert pairs.comparisons().tolist() == [[1, 0], [3, 2]] and pairs.certainty.tolist() == [1.0] * 4


def test_a_score_of_the_judge_that_is_not_finite_is_told() -> None:
    """NaN is greater than nothing and less than nothing: its comparisons would be gone without a word."""
    rollouts = rollouts_of(prompts_of(4), 0)
    with pytest.raises(TetrarchError, match=r"not finite for 1 of 4 responses"):
        by_score(rollouts, torch.tensor([0.0, float("nan"), 1.0, 2.0]), 2)


class Judge:
    """Prefers the longer response with 80 %, and whatever is shown first by 10 % more."""

    name = "longer"

    def __init__(self) -> None:
        self.asked: list[JudgeQuestion] = []
        self.down = False

    def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[int, JudgeAnswer | Refusal]]:
        for number, question in enumerate(questions):
            if self.down:
                raise JudgeDown("it is down")
            self.asked.append(question)
            text = question.messages[0]["content"]
            first, second = (text.split(f"<response {letter}>\n")[1].split("\n</response")[0] for letter in "AB")
            if "refuse" in first:
                yield number, Refusal("no")
                continue
            mass = 0.01 if "prose" in first else 1.0
            likely = (0.8 if len(first) > len(second) else 0.2) + 0.1
            yield number, JudgeAnswer("A", (likely * mass, (1 - likely) * mass))


def asked_pairs(file: Path, judge: Judge, said: list[str], each: int, *, chats: bool = False) -> Preferences:
    endpoint = {"type": "endpoint", "url": "http://h/v1/completions", "model": "m"}
    config = settings(judge=endpoint, responses_per_prompt=each, question="Which is longer?")
    assert isinstance(config.judge, EndpointJudge)
    rollouts = replace(rollouts_of(prompts_of(len(said)), 0), responses=said)
    if chats:
        rollouts = replace(rollouts, columns={"messages": [[{"role": "user", "content": "Hello"}]] * len(said)})
    with open_answers(file) as answers:
        asking = Asking(judge, answers, AskingBudgetConfig(), None)
        return AskedPairs(config, config.judge, asking)(rollouts)


def test_an_endpoint_is_asked_in_both_orders_and_gives_soft_labels(tmp_path: Path) -> None:
    judge = Judge()
    pairs = asked_pairs(tmp_path / "answers.jsonl", judge, ["aa", "b", "cc", "cc"], 2)
    assert len(judge.asked) == 2, "equal responses are not compared"
    assert pairs.token_ids[:, 0].tolist() == [0, 1] and pairs.ranks.tolist() == [1.0, 0.0]
    assert pairs.certainty.tolist() == pytest.approx([0.8, 0.8]), "the preference for a position cancels"
    turned = asked_pairs(tmp_path / "other.jsonl", Judge(), ["b", "aa"], 2)
    assert turned.token_ids[:, 0].tolist() == [1, 0] and turned.ranks.tolist() == [1.0, 0.0]


def test_every_two_of_more_responses_are_a_group_of_their_own(tmp_path: Path) -> None:
    pairs = asked_pairs(tmp_path / "answers.jsonl", Judge(), ["a", "bb", "ccc"], 3)
    assert pairs.token_ids[:, 0].tolist() == [1, 0, 2, 0, 2, 1] and pairs.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert pairs.comparisons().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_what_the_judge_leaves_open_is_not_learned_from(tmp_path: Path) -> None:
    said = ["refuse", "x", "prose", "x", "even", "same", "aa", "b"]
    pairs = asked_pairs(tmp_path / "answers.jsonl", Judge(), said, 2)
    assert pairs.token_ids[:, 0].tolist() == [4, 5, 6, 7] or pairs.token_ids[:, 0].tolist() == [6, 7]
    none = asked_pairs(tmp_path / "none.jsonl", Judge(), ["prose", "x"], 2)
    assert len(none) == 0 and len(none.comparisons()) == 0


def test_nothing_is_asked_twice_and_an_endpoint_that_is_down_ends_the_run(tmp_path: Path) -> None:
    judge, said = Judge(), ["aa", "b", "cc", "d"]
    first = asked_pairs(tmp_path / "answers.jsonl", judge, said[:2], 2, chats=True)
    assert "Hello" in judge.asked[0].messages[0]["content"] and len(judge.asked) == 2
    judge.down = True
    with pytest.raises(TetrarchError, match=r"retraining\.judge: it is down; what it has answered is kept"):
        asked_pairs(tmp_path / "answers.jsonl", judge, said, 2, chats=True)
    again = asked_pairs(tmp_path / "answers.jsonl", judge, said[:2], 2, chats=True)
    assert len(judge.asked) == 2 and torch.equal(again.certainty, first.certainty)
