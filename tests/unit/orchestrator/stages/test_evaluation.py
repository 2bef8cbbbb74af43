"""Measuring a policy: which roles are asked, and what the numbers are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.groups.spread
import tests.unit.orchestrator.fakes
from cluster.config import Deadlines
from cluster.errors import DeadlineExceeded
from orchestrator.config.evaluation import EvaluationConfig, EvaluationRun
from orchestrator.config.loading import validate_root
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.policy import Policy
from orchestrator.groups.reward import Member, Reward
from orchestrator.groups.scoring import EvaluationRoles
from orchestrator.report.evaluation_parts import pass_at
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.run_files import finite
from orchestrator.report.terminal_lines import evaluation_lines
from orchestrator.run.checkpoint import TRAINED
from orchestrator.stages import evaluation
from orchestrator.stages.evaluation import (
    Answered,
    _rows,
    evaluate,
    evaluate_run,
    of_different_prompts,
    training_samples,
)
from orchestrator.stages.measured_policy import measured_policy
from roles.batch import Prompts, Rollouts
from roles.config.rewards import MeanScore
from tests.unit.orchestrator.fakes import FakeCall, FakeGroup, prompts_of, write_waits
from tests.unit.orchestrator.ppo.test_experience import make_scored

SHOWN = [EvaluationConfig(samples=count) for count in range(4)]
"""By the number of responses that are shown."""


class Engines(FakeGroup):
    """Every engine answers its whole share; sampled tokens had a log-probability of -1."""

    def parts(self, engine: int, method: Any, prompts: Prompts, version: int) -> Iterator[Any]:
        for rollouts in super().parts(engine, method, prompts, version):
            rollouts.rollout_logprobs[rollouts.response_mask] = -1.0
            yield rollouts


class Reference(FakeGroup):
    """-3 for every generated token."""

    def map(self, method: Any, shards: list[Any], *common: Any) -> FakeCall:
        self.log.append(f"start {self.role}.{method.__name__}")
        return FakeCall(
            self, method.__name__, [torch.full((int(shard.response_mask.sum()),), -3.0) for shard in shards]
        )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(orchestrator.groups.spread, "wait_all", write_waits(lines))
    return lines


def roles_of(log: list[str], *, judge: bool) -> EvaluationRoles:
    roles: Any = {role: FakeGroup(role, log) for role in ("reward", "judge")}
    return EvaluationRoles(
        cluster=SimpleNamespace(),  # type: ignore[arg-type]
        policy=Policy(Engines("rollout", log), Deadlines()),  # type: ignore[arg-type]
        reward=Reward({"reward": Member(roles["reward"])}, MeanScore()),
        reference=Reference("reference", log),  # type: ignore[arg-type]
        judge=Member(roles["judge"]) if judge else None,
        deadlines=Deadlines(),
    )


def test_what_the_environment_paid_is_in_the_score(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = tests.unit.orchestrator.fakes.rollouts_of

    def paying(prompts: Prompts, version: int) -> Rollouts:
        rollouts = made(prompts, version)
        return replace(rollouts, turn_rewards=0.5 * rollouts.response_mask)

    monkeypatch.setattr(tests.unit.orchestrator.fakes, "rollouts_of", paying)
    roles = roles_of(log, judge=True)
    both = evaluate(roles, prompts_of(3), 0, step=0, label="x", how=SHOWN[0])
    assert both.proxy_values == [1.5, 2.5, 3.5] and both.gold_values == [0.0, 1.0, 2.0]
    alone = evaluate(
        replace(roles, reward=Reward({}, MeanScore())),
        prompts_of(3),
        0,
        step=0,
        label="x",
        how=SHOWN[0],
    )
    assert alone.proxy_values == [1.5, 1.5, 1.5]


def test_weights_are_looked_at_on_responses_that_are_sampled_as_in_training(log: list[str]) -> None:
    """Also where the evaluation is greedy: then on a few others."""
    roles = roles_of(log, judge=False)
    greedy, seen = prompts_of(40).greedy(1), list[Rollouts]()
    own = EvaluationConfig.model_validate({"samples": 0, "sampling": {"temperature": 0}})
    evaluate(roles, greedy, 0, step=0, label="x", how=own, check=seen.append)
    asked = [shard for shards in roles.policy.engines.seen for shard in shards]  # type: ignore[attr-defined]
    seeds = [seed for shard in asked for seed in shard.seeds]
    assert len(seen) == 1 and len(seen[0]) == 16
    assert seeds[:40] == [None] * 40 and sorted(seeds[40:]) == list(range(16))
    evaluate(roles, prompts_of(40), 0, step=0, label="x", how=SHOWN[0], check=seen.append)
    assert len(seen[1]) == 40, "its own responses"


@pytest.mark.parametrize("judge", [True, False])
def test_the_numbers(log: list[str], judge: bool) -> None:
    result = evaluate(roles_of(log, judge=judge), prompts_of(5), 0, step=7, label="after", how=SHOWN[2])
    assert (result.step, result.label, result.prompts) == (7, "after", 5)
    # The fake scorers answer with the row's number: each score belongs to its own prompt.
    assert result.proxy_values == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert result.gold_values == (result.proxy_values if judge else None)
    assert (result.gold is None) != judge
    spread = torch.arange(5.0).std(correction=1).item()
    assert (result.proxy.mean, result.proxy.standard_error) == (2.0, pytest.approx(spread / 5**0.5))
    # Three tokens per response, each with log-probability -1 against -3: k1 sums to 6 nats.
    assert (result.kl.mean, result.kl.standard_error) == (pytest.approx(6.0), pytest.approx(0.0))
    assert (result.length.mean, result.truncated_fraction) == (3.0, 0.0)
    assert [(row.proxy, row.kl) for row in result.samples] == [(0.0, pytest.approx(6.0)), (1.0, pytest.approx(6.0))]


def test_several_responses_to_a_prompt_are_a_mean_and_a_chance_to_pass(log: list[str]) -> None:
    how = EvaluationConfig(samples=2, responses_per_prompt=4, passes=5.0, by="source")
    prompts = replace(prompts_of(8), columns={"source": ["a"] * 4 + ["b"] * 4})  # scores 0 to 7
    result = evaluate(roles_of(log, judge=False), prompts, 0, step=0, label="x", how=how)
    assert (result.prompts, result.proxy_values) == (2, [1.5, 5.5]) and result.proxy == Estimate.of([1.5, 5.5])
    assert result.kl.mean == pytest.approx(6.0) and result.length == Estimate(3.0, 0.0)
    assert {k: one.mean for k, one in result.passed.items()} == {"1": 0.375, "2": 0.5, "4": 0.5}  # 0 and 3 of 4 pass
    assert {name: one.mean for name, one in result.by.items()} == {"a": 1.5, "b": 5.5}
    assert [row.proxy for row in result.samples] == [0.0, 4.0], "one of each prompt"
    assert EvaluationResult.from_json(finite(result.to_json())).passed == result.passed
    lines = evaluation_lines(result, result).splitlines()
    assert "pass@1 +0.375 ±0.375  pass@2 +0.500 ±0.500" in lines[0] and lines[1:3] == ["  a: +1.500", "  b: +5.500"]
    assert any(line.startswith("  pass@4: 0.500 -> 0.500") for line in lines)


def test_the_judge_says_what_passes(log: list[str]) -> None:
    how = EvaluationConfig(passes=1.0)
    rates = [1.0, None, 0.25]
    result = evaluate(
        roles_of(log, judge=False), prompts_of(3), 0, step=0, label="x", how=how, compare=lambda rollouts: rates
    )
    assert result.passed["1"].mean == pytest.approx(1 / 3)


@pytest.mark.parametrize(("count", "passed", "k"), [(4, 1, 2), (5, 2, 3), (6, 0, 2), (6, 6, 1), (3, 2, 3)])
def test_pass_at_k_is_the_share_of_draws_with_a_pass(count: int, passed: int, k: int) -> None:
    draws = list(combinations([True] * passed + [False] * (count - passed), k))
    assert pass_at(count, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_win_rate_is_the_gold_score_and_what_is_undecided_counts_half(log: list[str]) -> None:
    rates = [1.0, None, 0.25]
    result = evaluate(
        roles_of(log, judge=False), prompts_of(3), 0, step=0, label="x", how=SHOWN[3], compare=lambda rollouts: rates
    )
    assert result.gold_values == [1.0, 0.5, 0.25] and result.undecided == 1
    assert [row.gold for row in result.samples] == [1.0, 0.5, 0.25]
    assert "gold +0.583 ±0.220  (1 undecided)" in evaluation_lines(result, None)
    assert EvaluationResult.from_json(result.to_json()) == result


def test_all_passes_are_under_way_before_any_is_waited_for(log: list[str]) -> None:
    evaluate(roles_of(log, judge=True), prompts_of(5), 0, step=0, label="before", how=SHOWN[1])
    assert [line for line in log if "part" not in line] == [
        *("start rollout.generate", "start reward.score", "start reference.reference_logprobs", "start judge.score"),
        "wait for judge.score reference.reference_logprobs reward.score",
    ]


def test_the_policy_is_called_what_it_is(tmp_path: Path) -> None:
    """The run's own; before it another run's, which `actor.model.path` may name; or the model that it names."""

    def config(path: Path) -> EvaluationRun:
        data = {
            "run_dir": str(tmp_path / "run"),
            "actor": {"model": {"path": str(path)}},
            "reward": {"type": "remote", "urls": ["http://127.0.0.1:1"]},
            "prompts": {"train": {"path": "rows.jsonl"}, "max_tokens": 8},
            "rollout": {"prompts_per_step": 1, "max_response_tokens": 8},
        }
        return validate_root(EvaluationRun, data)

    plain, other, own = tmp_path / "sft/model", tmp_path / "other/actor", tmp_path / "run/actor"
    assert measured_policy(config(plain)) == (None, 0, f"of actor.model.path={plain}")
    other.mkdir(parents=True)
    (other / TRAINED).write_text('{"step": 7}')
    assert measured_policy(config(other)) == (None, 7, "trained")
    own.mkdir(parents=True)
    (own / TRAINED).write_text('{"step": 3}')
    assert measured_policy(config(other)) == (own, 3, "trained")


def test_training_samples_are_of_different_prompts() -> None:
    scored = make_scored()
    rows = training_samples(scored.select(of_different_prompts(4, 3, 2)))
    assert [row.proxy for row in rows] == [1.0, 3.0, 2.0]
    assert of_different_prompts(4, 9, 2) == [0, 2, 1, 3]


def test_a_sample_of_a_chat_has_its_messages_and_that_of_a_conversation_its_turns() -> None:
    asked = [{"role": "user", "content": "ab"}]
    talk = [
        {"role": "assistant", "content": "r"},
        {"role": "user", "content": 5},
        {"role": "assistant", "content": "r"},
    ]
    prefilled = [*asked, {"role": "assistant", "content": "Sure:"}]
    scored = make_scored()
    mask = scored.rollouts.response_mask.clone()
    mask[1] = False
    mask[1, [3, 5]] = True
    lengths = scored.rollouts.lengths.clone()
    lengths[1] = 6
    chats = {"messages": [asked, [*asked, *talk], prefilled, None]}
    rollouts = replace(scored.rollouts, columns=chats, response_mask=mask, lengths=lengths)
    rows = training_samples(replace(scored, rollouts=rollouts))
    assert [row.messages for row in rows] == [asked, asked, prefilled, []]
    assert [row.talk for row in rows] == [[], [talk[0], {"role": "user", "content": "5"}, talk[2]], [], []]


def test_the_prompt_of_a_conversation_is_what_came_before_its_first_response() -> None:
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}]
    talk = [
        {"role": "assistant", "content": "r"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "r"},
    ]
    rollouts = make_scored([(2, 4), (2, 3)]).rollouts
    mask = rollouts.response_mask.clone()
    mask[0] = torch.tensor([False, False, True, False, False, True])
    rollouts = replace(rollouts, columns={"messages": [[*asked, *talk], asked]}, response_mask=mask)
    rows = list(_rows(Answered(rollouts, [1.0, 2.0], None, None), ""))
    assert [row["prompt"] for row in rows] == [asked, asked]


@pytest.mark.parametrize("fails", [1, 2, None], ids=["the second set", "the benchmarks", "nothing"])
def test_what_is_done_is_kept_when_what_follows_fails(
    log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int | None
) -> None:
    data = {
        "run_dir": str(tmp_path),
        "actor": {"model": {"path": "m"}},
        "reward": {"type": "remote", "urls": ["http://127.0.0.1:1"]},
        "prompts": {name: {"path": "rows.jsonl"} for name in ("train", "heldout")}
        | {"heldout_sets": {"math": {"path": "rows.jsonl"}}, "max_tokens": 8},
        "rollout": {"prompts_per_step": 1, "max_response_tokens": 8},
        "evaluation": {"decides": "math"},
    }
    config, done = validate_root(EvaluationRun, data), list[str]()
    made = roles_of(log, judge=False)
    recovery = made.policy.recovery
    recovery.config = RecoveryConfig()

    @contextmanager
    def roles(*_: Any) -> Iterator[EvaluationRoles]:
        yield made

    def perhaps(work: Any) -> Any:
        def doing(*given: Any, **named: Any) -> Any:
            if len(done) == fails:
                raise RuntimeError("the machine is gone")
            done.append(work.__name__)
            if work.__name__ == "answered":  # one deadline may pass in each set
                recovery.survive("frozen_failures_per_hour", DeadlineExceeded("late"))
            return work(*given, **named)

        return doing

    files, rows = tmp_path / "evaluate.json", tmp_path / "evaluated.jsonl"
    files.write_text("that of an earlier evaluation")
    monkeypatch.setattr(evaluation, "evaluation_roles", roles)
    monkeypatch.setattr(evaluation, "resolve_models", lambda *_: SimpleNamespace(actor=Path("m")))
    asked = {"": prompts_of(2), "math": prompts_of(3)}
    monkeypatch.setattr(evaluation, "asked_heldout", lambda *_: asked)
    for name in ("answered", "run_benchmarks"):
        monkeypatch.setattr(evaluation, name, perhaps(getattr(evaluation, name)))
    with nullcontext() if fails is None else pytest.raises(RuntimeError, match="gone"):
        assert evaluate_run(config, {}).prompts == 3
    told = json.loads(files.read_text())
    assert told["other_sets"]["heldout"]["prompts"] == 2
    assert told.get("prompts") == (None if fails == 1 else 3) and ("benchmarks" in told) == (fails is None)
    sets = [json.loads(line).get("set") for line in rows.read_text().splitlines()]
    assert sets == [None, None] + ["math"] * (0 if fails == 1 else 3)
