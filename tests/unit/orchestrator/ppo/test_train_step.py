"""One PPO step on fakes that write down what is asked of them, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.groups.canary
import orchestrator.groups.scoring
import orchestrator.groups.spread
import orchestrator.ppo.stats
import orchestrator.ppo.step
from cluster.config import Deadlines
from cluster.errors import RankFailure
from cluster.ranks.watch import STARTED
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.retraining import RetrainingConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import PtxData, PtxSource
from orchestrator.data.packed_demonstrations import packed
from orchestrator.errors import NotFinite, TetrarchError, WeightsDiffer
from orchestrator.groups.reward import Member
from orchestrator.groups.scoring import Policy, Reward, Roles
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import ExperienceStats
from orchestrator.ppo.step import StepResult, step_metrics, train_step
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.step_samples import step_samples
from roles.batch import Prompts, Scored, Sequences
from roles.config.models import WarmupConfig
from roles.config.rewards import MeanScore
from roles.config.rollout import RolloutConfig
from roles.shares import ActorExperience, CriticExperience, RankShare
from tests.unit.orchestrator import fakes
from tests.unit.orchestrator.fakes import ACTOR, CRITIC, FakeGroup, prompts_of, write_waits

ROWS = 4


def step(
    log: list[str],
    *,
    stale: int = 0,
    sleeps: bool = False,
    warmup: WarmupConfig | None = None,
    done: int = 0,
    retraining: RetrainingConfig | None = None,
    warm_at: int | None = None,
    kept: list[Scored] | None = None,
    members: Sequence[str] = ("reward",),
    frozen: Sequence[str] = (),
    others: Sequence[Prompts] = (),
    prompts: Prompts | None = None,
    recomputes: bool = True,
    looks: bool = True,
    texts: Any = None,
    **ppo: Any,
) -> tuple[StepResult, TrainState, dict[str, FakeGroup]]:
    """`kept`: where the scored batch goes. `done`: steps before this one; `frozen`: roles beside the usual ones."""
    groups = {role: FakeGroup(role, log) for role in ("actor", "critic", "reference")}
    engines = FakeGroup("rollout", log, stale=stale)
    reward = Reward({role: Member(FakeGroup(role, log)) for role in members}, MeanScore())  # type: ignore[arg-type]
    deadlines = Deadlines()
    roles: Any = Roles(
        cluster=SimpleNamespace(),  # type: ignore[arg-type]
        policy=Policy(engines, deadlines, sleeps=sleeps),  # type: ignore[arg-type]
        judge=None,
        deadlines=deadlines,
        frozen={role: FakeGroup(role, log) for role in frozen},  # type: ignore[misc]
        recomputes=recomputes,
        **{**groups, "reward": reward},  # type: ignore[arg-type]
    )
    groups["rollout"] = engines
    algorithm = PpoConfig.model_validate({"epochs": 2, "mini_batches": 2, **ppo})
    if not algorithm.uses_critic:
        roles = dataclasses.replace(roles, critic=None)
    rollout = RolloutConfig(prompts_per_step=2, responses_per_prompt=2, max_response_tokens=3)
    config: Any = SimpleNamespace(
        ppo=algorithm,
        deadlines=deadlines,
        seed=0,
        dtype="float32",
        rollout=rollout,
        critic=SimpleNamespace(warmup=warmup or WarmupConfig()),
        canary=CanaryConfig(enabled=looks),
        steps=10,
        retraining=retraining,
    )
    config.critic_alone = partial(RunConfig.critic_alone, config)
    config.actor_steps = partial(RunConfig.actor_steps, config)
    source: Any = SimpleNamespace(drawn=[0, 1], next=partial(next_prompts, others, log))
    state = TrainState(source, FixedController(0.1), version=3, step=done)
    state.warm_at = warm_at
    state.ptx = texts
    clock = Clock(lambda phase: log.append(f"[{phase}]"))
    keep = (kept if kept is not None else []).append
    return train_step(roles, prompts or prompts_of(ROWS), state, config, clock, keep), state, groups


def next_prompts(others: Sequence[Prompts], log: list[str], count: int, each: int) -> Prompts:
    """What the source draws: `others`, one after the other."""
    done = sum(line.startswith("draw") for line in log)
    log.append(f"draw {count}")
    assert len(others[done]) == count * each
    return others[done]


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; waits for several calls are in it."""
    lines: list[str] = []
    for module in (orchestrator.ppo.step, orchestrator.groups.spread):
        monkeypatch.setattr(module, "wait_all", write_waits(lines))
    monkeypatch.setattr(orchestrator.groups.scoring, "ROWS_OF_A_RANK", 1)
    return lines


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return no_waiting(monkeypatch)


SCORING = ["start actor.logprobs", "start reference.reference_logprobs", "start critic.values", "start reward.score"]


def test_what_gives_the_ranks_little_is_scored_together(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of each engine for two ranks each: they wait for the other engine's."""
    monkeypatch.setattr(orchestrator.groups.scoring, "ROWS_OF_A_RANK", 2)
    result, _, _ = step(log)
    assert log[1:7] == ["part of engine 1", "part of engine 0", *SCORING]
    assert result.own.scored.rollouts.token_ids[:, 0].tolist() == list(range(ROWS))


@pytest.mark.parametrize("names", [False, True])
def test_processes_of_a_function_ask_for_no_rows(names: bool) -> None:
    groups: dict[str, Any] = {role: FakeGroup(role, [], size=3) for role in ("actor", "critic", "reference")}
    many: Any = FakeGroup("reward", [], size=64)
    others: dict[str, Any] = dict.fromkeys(("cluster", "policy", "judge", "deadlines"))
    roles = Roles(**groups, **others, reward=Reward({"reward": Member(many, names=names)}, MeanScore()))
    assert roles.least_rows == orchestrator.groups.scoring.ROWS_OF_A_RANK * (3 if names else 64)


def test_the_order_of_calls(log: list[str]) -> None:
    result, state, _ = step(log)
    passes = "actor.logprobs critic.values reference.reference_logprobs reward.score"
    assert log == [
        "[generate]",
        *("part of engine 1", *SCORING),  # while engine 0 still generates
        *("part of engine 0", *SCORING),
        "[score]",
        "wait for " + " ".join(sorted(2 * passes.split())),
        "[experience]",
        "[update]",
        *("start critic.update", "start actor.update", "wait for actor.update critic.update"),  # side by side
        "[push]",
        "actor.push(4,)",
    ]
    assert (state.step, state.version, state.samples) == (1, 4, ROWS)
    assert result.actor is ACTOR and result.critic is CRITIC


def test_a_push_that_fails_leaves_the_state_of_a_step_that_is_done(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actor and critic have learned from the batch: without it, nobody could go on from what they are."""
    monkeypatch.setattr(FixedController, "update", lambda self, kl, samples: log.append(f"KL of {samples} samples"))
    whole, done, _ = step(log)
    told = [log.count("KL of 4 samples")]
    died = RankFailure("rollout rank 0 died")
    monkeypatch.setattr(Policy, "load", failing(died))
    result, state, _ = step(log)
    told.append(log.count("KL of 4 samples"))
    assert (whole.failed, result.failed, told) == (None, died, [1, 2])
    assert (state.step, state.version, state.samples) == (done.step, done.version, done.samples) == (1, 4, ROWS)
    assert (result.actor, result.critic, result.trained) == (whole.actor, whole.critic, whole.trained)
    assert step_metrics(result) == pytest.approx(step_metrics(whole), nan_ok=True)


def failing(error: Exception) -> Any:
    def fail(*asked: Any, **more: Any) -> None:
        raise error

    return fail


def test_without_a_critic_nobody_asks_for_values(log: list[str]) -> None:
    result, _, groups = step(log, advantage={"type": "rloo"})
    assert not [line for line in log if "critic" in line]
    assert log[-4:] == ["start actor.update", "wait for actor.update", "[push]", "actor.push(4,)"]
    assert result.critic is None and (result.own.scored.values == 0).all()
    first, *_ = groups["actor"].seen[-1]
    assert first.experience.advantages.abs().max() == pytest.approx(
        1.0
    )  # scores 0, 1 and 2, 3: each one off its neighbour
    metrics = step_metrics(result)
    assert not [key for key in metrics if key.startswith("value/") or key == "lr/critic"]


def test_without_a_reward_nobody_scores(log: list[str]) -> None:
    result, _, _ = step(log, members=())
    assert not [line for line in log if "reward" in line]
    assert (result.own.scored.scores == 0).all(), "the fake environment paid nothing"


def test_engines_that_share_their_gpus_sleep_while_others_work(log: list[str]) -> None:
    """Nobody scores before they sleep, and then all rows at once; weights wake before the push, the KV cache after."""
    result, _, _ = step(log, sleeps=True)
    assert result.own.scored.rollouts.token_ids[:, 0].tolist() == result.own.scored.scores.tolist() == list(range(ROWS))
    wake = "rollout.wake(('weights', 'kv_cache'),)"
    assert log[:5] == ["[generate]", wake, "part of engine 1", "part of engine 0", "rollout.sleep(False,)"]
    assert log[5:10] == [*SCORING, "[score]"]
    assert log[-3:] == ["rollout.wake(('weights',),)", "actor.push(4,)", "rollout.wake(('kv_cache',),)"]


def test_rows_keep_their_order_whatever_order_the_parts_come_in(log: list[str]) -> None:
    result, _, _ = step(log)
    assert result.own.scored.rollouts.token_ids[:, 0].tolist() == result.own.scored.scores.tolist() == list(range(ROWS))


def test_actor_and_critic_get_every_row_in_every_epoch(log: list[str]) -> None:
    _, _, groups = step(log)
    for role, kind in (("actor", ActorExperience), ("critic", CriticExperience)):
        ranks: list[RankShare[Any]] = groups[role].seen[-1]
        assert [len(share.steps) for share in ranks] == [4, 4]  # epochs * mini_batches each
        for epoch in range(2):
            rows = []
            for share in ranks:
                assert isinstance(share.experience, kind)
                places = [place for step in share.steps[2 * epoch : 2 * epoch + 2] for place in step]
                rows += share.experience.token_ids[places, 0].tolist()
            assert sorted(rows) == list(range(ROWS))


def test_nobody_is_sent_what_it_does_not_read(log: list[str]) -> None:
    """Models get tokens; who scores texts gets those and the columns."""
    _, _, groups = step(log)
    for role in ("actor", "critic", "reference"):
        assert all(isinstance(shard, Sequences) for shard in groups[role].seen[0])


def test_while_the_critic_warms_up_the_actor_stays(log: list[str]) -> None:
    result, state, _ = step(log, warmup=WarmupConfig(max_steps=1))
    assert log[-2:] == ["start critic.update", "wait for critic.update"]
    assert (state.step, state.version, state.warm_at) == (1, 3, None)
    assert result.actor is None


def test_after_the_last_step_of_the_warm_up_the_actor_begins_with_new_samples(log: list[str]) -> None:
    result, state, groups = step(log, warmup=WarmupConfig(max_steps=1), done=1)
    assert result.actor is ACTOR and (state.warm_at, state.version) == (1, 4)
    assert not [line for line in log if "expect" in line], "its schedule was made for these steps"
    # One mini-batch an optimizer step: the samples of this step and no others.
    assert [len(share.steps) for share in groups["actor"].seen[-1]] == [4, 4]


@pytest.mark.parametrize(("explained", "trained"), [(0.39, False), (0.4, True)])
def test_the_warm_up_ends_when_the_critic_explains_enough(
    log: list[str], monkeypatch: pytest.MonkeyPatch, explained: float, trained: bool
) -> None:
    """The batch that shows it is the actor's first; its schedule gets the steps that the warm-up has left over."""
    monkeypatch.setattr(orchestrator.ppo.stats, "explained_variance", lambda values, returns: explained)
    gate = WarmupConfig(max_steps=5, until_explained_variance=0.4)
    result, state, _ = step(log, warmup=gate, done=2)
    assert (result.actor is not None) == trained
    assert state.warm_at == (2 if trained else None)
    assert [line for line in log if "expect" in line] == [f"actor.expect({(10 - 2) * 2 * 2},)"] * trained


@pytest.mark.parametrize(("done", "trained"), [(3, True), (4, False), (5, True)])
def test_after_a_retraining_of_the_reward_the_critic_learns_its_scores_first(
    log: list[str], done: int, trained: bool
) -> None:
    judge = {"type": "function", "path": "judge.py"}
    again = RetrainingConfig.model_validate({"every": 4, "judge": judge, "critic_steps": 1})
    result, state, _ = step(log, retraining=again, done=done, warm_at=0)
    assert (result.actor is not None) == trained and result.critic is CRITIC
    assert state.version == 3 + trained, "nothing is pushed, and the KL controller does not move"


def test_the_actors_schedule_has_the_steps_that_retrainings_leave(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.ppo.stats, "explained_variance", lambda values, returns: 1.0)
    judge = {"type": "function", "path": "judge.py"}
    again = RetrainingConfig.model_validate({"every": 4, "judge": judge, "critic_steps": 2})
    step(log, warmup=WarmupConfig(max_steps=5, until_explained_variance=0.4), done=2, retraining=again)
    assert [line for line in log if "expect" in line] == [f"actor.expect({(10 - 2 - 4) * 2 * 2},)"]


PTX = {"data": {"path": "texts.jsonl"}, "coefficient": 1.0, "sequences_per_mini_batch": 2}
TEXTS = packed([[row] * 3 for row in range(5)], [[True] * 3] * 5, 0)


@pytest.mark.parametrize("warm", [True, False])
def test_the_rows_of_the_pre_training_loss_go_to_an_actor_that_is_trained(log: list[str], warm: bool) -> None:
    """While the critic warms up none is used up."""
    texts = PtxSource(PtxData(TEXTS, (), ""), seed=1)
    warmup = WarmupConfig(max_steps=0 if warm else 1)
    _, _, groups = step(log, texts=texts, ptx=PTX, warmup=warmup)
    begin = PtxSource(PtxData(TEXTS, (), ""), seed=1).state_dict()
    assert (texts.state_dict() == begin) == (not warm)
    if warm:
        shares = groups["actor"].seen[-1]
        assert sum(len(part) for share in shares for part in share.beside.steps) == 4 * 2
        assert all(share.beside is None for share in groups["critic"].seen[-1])


def test_remax_asks_for_one_greedy_response_a_prompt_and_scores_it(log: list[str]) -> None:
    """Before the others, so that engines that share their GPUs can sleep while it is scored."""
    _, _, groups = step(log, advantage={"type": "remax"}, sleeps=True)
    assert log[:4] == [
        "[generate]",
        "rollout.wake(('weights', 'kv_cache'),)",
        "start rollout.generate",
        "rollout.sleep(True,)",
    ]
    asked = [row for shard in groups["rollout"].seen[0] for row in zip(shard.token_ids, shard.seeds, strict=True)]
    assert asked == [([0, 1], None), ([2, 1], None)]
    assert log.count("start reward.score") == 2 and log.index("rollout.sleep(False,)") < log.index("start reward.score")
    parts = [share.experience for share in groups["actor"].seen[-1]]
    rows = torch.cat([part.token_ids[:, 0] for part in parts]).tolist()
    # Scores are row numbers; the greedy responses are those of rows 0 and 2.
    advantages = torch.cat([part.advantages[:, -1] for part in parts]).tolist()
    assert advantages == [row - 2 * (row // 2) for row in rows] and set(rows) == set(range(ROWS))


def test_the_members_of_an_ensemble_score_side_by_side(log: list[str]) -> None:
    result, _, _ = step(log, members=("reward.a", "reward.b"))
    scoring = ["start reward.a.score", "start reward.b.score"]
    assert [line for line in log if line.startswith("start reward")] == 2 * scoring
    assert log.index("start reward.b.score") < log.index("[score]")
    assert result.own.scored.scores.tolist() == list(range(ROWS))  # both say the same
    assert result.own.scored.disagreement.tolist() == [0.0] * ROWS


@pytest.mark.parametrize("greedy", [False, True])
def test_a_step_that_fails_leaves_its_batch(log: list[str], monkeypatch: pytest.MonkeyPatch, greedy: bool) -> None:
    """For whoever looks for the reason."""
    scores = fakes.scores_of
    asked: list[int] = []

    def bad(rollouts: Any) -> Any:
        """NaN for the greedy responses, which are asked for last; or for all."""
        asked.append(1)
        return scores(rollouts) * (float("nan") if not greedy or len(asked) > 4 else 1.0)

    monkeypatch.setattr(fakes, "scores_of", bad)
    kept: list[Scored] = []
    with pytest.raises(NotFinite) as caught:
        step(log, kept=kept, **({"advantage": {"type": "remax"}} if greedy else {}))
    assert caught.value.role == "reward"
    assert len(kept[0]) == ROWS


def test_nothing_is_trained_on_samples_of_weights_that_are_not_the_actors(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = fakes.rollouts_of

    def off(prompts: Any, version: int) -> Any:
        rollouts = sampled(prompts, version)
        return dataclasses.replace(rollouts, rollout_logprobs=rollouts.rollout_logprobs + 0.01)

    monkeypatch.setattr(fakes, "rollouts_of", off)
    with pytest.raises(WeightsDiffer, match=r"version 3.*differ from the actor's by 0\.01 nats.*limit is 0\.0001"):
        step(log)
    assert log[-1] == "[experience]"


def test_a_batch_without_a_trained_token_trains_nothing(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's momentum would move the weights; the engines get their weights anyway, which they may have dropped."""
    sampled = fakes.rollouts_of

    def cut(prompts: Any, version: int) -> Any:
        return dataclasses.replace(sampled(prompts, version), finished=torch.zeros(len(prompts), dtype=torch.bool))

    monkeypatch.setattr(fakes, "rollouts_of", cut)
    result, state, _ = step(log, truncated={"type": "mask"})
    assert not [line for line in log if "update" in line and line != "[update]"]
    assert (result.actor, result.critic, result.trained) == (None, None, set())
    assert state.version == 4 and state.step == 1
    assert not any(name.startswith(("policy/", "lr/")) for name in step_metrics(result))


def test_the_engines_log_probabilities_may_stand_for_the_actors(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the actor computes only those of a few samples of each engine, by which the weights are checked."""
    sampled, answered = fakes.rollouts_of, fakes.per_token

    def surprised(prompts: Any, version: int) -> Any:
        rollouts = sampled(prompts, version)
        return dataclasses.replace(rollouts, rollout_logprobs=-2.0 * rollouts.response_mask)

    monkeypatch.setattr(fakes, "rollouts_of", surprised)
    monkeypatch.setattr(fakes, "per_token", lambda rows: answered(rows) - 2.0)
    monkeypatch.setattr(orchestrator.groups.canary, "ROWS", 2)
    result, _, groups = step(log, recomputes=False)
    assert "start actor.logprobs" not in log and log.count("start actor.canary_logprobs") == 1
    looked = sorted(int(row) for shard in groups["actor"].seen[0] for row in shard.token_ids[:, 0])
    assert looked == [0, 2], "the first row of each engine"
    assert torch.equal(result.own.scored.old_logprobs, result.own.scored.rollouts.rollout_logprobs)
    assert (result.stats.logprob_gap_mean, result.stats.logprob_gap_max) == (0.0, 0.0)
    unseen, _, _ = step(log, recomputes=False, looks=False)
    assert "engine/logprob_gap_mean" not in step_metrics(unseen), "nobody has looked"
    assert (result.own.scored.reference_logprobs[result.own.scored.rollouts.response_mask] == -2.0).all()


@pytest.mark.parametrize("others", [(), (4, 5)])
def test_wrong_weights_are_noticed_also_where_the_actor_computes_few_log_probabilities(
    log: list[str], monkeypatch: pytest.MonkeyPatch, others: tuple[int, ...]
) -> None:
    """Also where only the prompts that were drawn later were answered with wrong weights."""
    sampled = fakes.rollouts_of

    def off(prompts: Any, version: int) -> Any:
        rollouts, wrong = sampled(prompts, version), not others or prompts.token_ids[0][0] in others
        return dataclasses.replace(rollouts, rollout_logprobs=rollouts.rollout_logprobs + 0.01 * wrong)

    monkeypatch.setattr(fakes, "rollouts_of", off)
    more: dict[str, Any] = {"prompts": scoring(1, 1, 2, 3), "others": [scoring(*others)], **GRPO} if others else {}
    with pytest.raises(WeightsDiffer, match=r"differ from the actor's by 0\.01 nats"):
        step(log, recomputes=False, **more)


def test_samples_of_other_weights_are_refused(log: list[str]) -> None:
    with pytest.raises(TetrarchError, match=r"asked for samples of weights version 3, got some of \[2\]"):
        step(log, stale=-1)


def test_the_result_tells_the_experience(log: list[str]) -> None:
    result, _, _ = step(log)
    assert isinstance(result.own.scored, Scored) and isinstance(result.stats, ExperienceStats)
    assert result.stats.score_mean == pytest.approx(sum(range(ROWS)) / ROWS)


def scoring(*scores: int) -> Prompts:
    """Prompts whose responses get these scores, two responses to each."""
    rows = len(scores)
    return Prompts([[score, 1] for score in scores], ["p"] * rows, {}, list(range(50, 50 + rows)), [0] * rows)


GRPO = {"advantage": {"type": "grpo"}, "dynamic_sampling": {"rounds": 3}}


def test_prompts_without_a_spread_are_replaced_until_there_are_enough(log: list[str]) -> None:
    kept: list[Scored] = []
    result, state, groups = step(
        log, kept=kept, prompts=scoring(1, 1, 2, 3), others=[scoring(4, 4), scoring(5, 6)], **GRPO
    )
    assert [line for line in log if line.startswith(("draw", "["))] == [
        *("[generate]", "[score]", "draw 1", "[generate]", "[score]", "draw 1", "[generate]", "[score]"),
        *("[experience]", "[update]", "[push]"),
    ]
    assert result.own.made.scored.scores.tolist() == [1, 1, 2, 3, 4, 4, 5, 6]
    assert result.own.scored.scores.tolist() == kept[-1].scores.tolist() == [2, 3, 5, 6] and state.samples == ROWS
    assert result.own.made.rows == [2, 3, 6, 7] and result.trained == {0, 1, 2, 3}
    assert result.own.made.seeds == [50, 51, 52, 53, 50, 51, 50, 51]
    first, *_ = groups["actor"].seen[-1]
    assert (first.experience.advantages * first.experience.response_mask).any(1).all(), "each of them teaches something"
    metrics = step_metrics(result)
    assert metrics["sampling/rounds"] == 3 and metrics["sampling/left_out_fraction"] == 0.5
    assert metrics["sampling/score_mean"] == 26 / 8 and metrics["score/mean"] == 4


@pytest.mark.parametrize(("first", "second"), [((9, 1, 2, 3), (5, 6)), ((1, 1, 2, 3), (9, 4))])
def test_a_score_that_is_not_finite_is_told_also_where_it_would_be_left_out(
    log: list[str], monkeypatch: pytest.MonkeyPatch, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """In the first round or the second: the score 9 is NaN."""
    scores = fakes.scores_of
    monkeypatch.setattr(fakes, "scores_of", lambda rows: scores(rows).where(scores(rows) != 9, float("nan")))
    kept: list[Scored] = []
    with pytest.raises(NotFinite, match="the reward's scores are not finite in rows"):
        step(log, kept=kept, prompts=scoring(*first), others=[scoring(*second), scoring(5, 6)], **GRPO)
    assert bool(kept[-1].scores.isnan().any()), "the samples that tell are kept"


def test_a_batch_that_cannot_be_filled_keeps_its_size(log: list[str]) -> None:
    result, _, _ = step(log, prompts=scoring(1, 1, 2, 2), others=[scoring(3, 3, 4, 4), scoring(5, 6, 7, 7)], **GRPO)
    assert result.own.scored.scores.tolist() == [1, 1, 5, 6] and result.own.made.left_out == {2, 3, 4, 5, 6, 7, 10, 11}


def test_enough_spread_at_once_draws_nothing_more(log: list[str]) -> None:
    result, _, _ = step(log, **GRPO)
    assert not [line for line in log if line.startswith("draw")] and not result.own.made.left_out
    assert step_metrics(result)["sampling/rounds"] == 1 and step_metrics(result)["sampling/left_out_fraction"] == 0
    assert "sampling/rounds" not in step_metrics(step(log, advantage={"type": "grpo"})[0])


def test_what_is_left_out_is_in_the_ledger_with_the_reason(log: list[str]) -> None:
    result, _, _ = step(log, prompts=scoring(1, 1, 2, 3), others=[scoring(5, 6)], **GRPO)
    config: Any = SimpleNamespace(ppo=PpoConfig.model_validate({**GRPO}), environment=None)
    samples = step_samples(config, 1, result.own, result.trained)
    assert samples.fates["trained"] == [False, False, True, True, True, True]
    assert samples.fates["dropped"] == ["no spread", "no spread", None, None, None, None]
    assert samples.line.samples == 6 and samples.line.trained == 4 and samples.line.dropped == {"no spread": 2}
    advantages = samples.per_token["advantages"]
    assert advantages.shape == result.own.made.scored.old_logprobs.shape
    assert not advantages[:2].any() and advantages[2:].any(1).all()


def test_the_death_of_a_rank_that_does_not_learn_costs_no_step(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While actor and critic learn, their deaths alone end the wait; before and after it everybody's."""
    watched: dict[str, Any] = {}

    def wait_all(calls: list[Any], deadline_s: float) -> None:
        for call in calls:
            watched[call.method] = STARTED._only

    for module in (orchestrator.ppo.step, orchestrator.groups.spread):
        monkeypatch.setattr(module, "wait_all", wait_all)
    fetched: list[Any] = []
    plain = fakes.FakeCall.result

    def result(call: fakes.FakeCall, deadline_s: float) -> list[Any]:
        fetched.append((call.method, STARTED._only is None))
        return plain(call, deadline_s)

    monkeypatch.setattr(fakes.FakeCall, "result", result)
    step(log)
    assert watched["update"] == {"actor-0", "actor-1", "critic-0", "critic-1"}
    assert [alone for method, alone in fetched if method == "update"] == [False, False]
    assert ("score", True) in fetched
    assert watched["score"] is watched["logprobs"] is STARTED._only is None
    step(log, advantage={"type": "rloo"})
    assert watched["update"] == {"actor-0", "actor-1"}
