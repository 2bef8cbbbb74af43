from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.ppo import PpoConfig
from orchestrator.errors import NotFinite
from orchestrator.groups.canary import SeenRows
from orchestrator.ppo.advantages import gae, whiten
from orchestrator.ppo.dynamic_sampling import generated
from orchestrator.ppo.experience import in_units_of, last_generated, made_by, shape_rewards
from orchestrator.ppo.own_batch import OwnBatch
from orchestrator.ppo.scores import RunningScale, shape_scores
from orchestrator.ppo.step import prepare
from roles.batch import Rollouts, Scored
from roles.losses.kl_estimators import k1
from tests.unit.orchestrator.fakes import prompts_of
from tests.unit.orchestrator.ppo.whole_batch import to_experience

BETA = 0.1
RESPONSES = [(2, 5), (3, 1), (1, 8), (4, 3)]
"""(prompt tokens, response tokens) of each row; rows 1 and 2 are cut by the length limit."""


def make_scored(responses: list[tuple[int, int]] = RESPONSES, truncated: tuple[int, ...] = (1, 2)) -> Scored:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([sum(row) for row in responses])
    columns = torch.arange(int(lengths.max()))
    begin = torch.tensor([row[0] for row in responses])
    mask = (columns >= begin[:, None]) & (columns < lengths[:, None])

    def numbers(shift: float = 0.0) -> Tensor:
        return (torch.randn(mask.shape, generator=generator) + shift) * mask

    size = len(responses)
    rollouts = Rollouts(
        token_ids=torch.randint(0, 50, mask.shape, generator=generator),
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=numbers(-2),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.tensor([row not in truncated for row in range(size)]),
        versions=torch.zeros(size, dtype=torch.int64),
        prompts=["p"] * size,
        responses=["r"] * size,
        columns={},
        counted=[{}] * size,
    )
    return Scored(
        rollouts,
        old_logprobs=numbers(-2),
        reference_logprobs=numbers(-2),
        values=numbers(),
        scores=torch.arange(1.0, size + 1),
        disagreement=torch.zeros(size),
        named=[{}] * size,
    )


def make_ppo(**changes: Any) -> PpoConfig:
    plain = {"whiten_advantages": False, "advantage": {"type": "gae", "gamma": 0.9, "lambda": 0.8}}
    return PpoConfig.model_validate({**plain, **changes})


def naive_rewards(scored: Scored, scores: list[float]) -> list[list[float]]:
    """Rewards of the generated tokens of each row."""
    rows = []
    for row, score in enumerate(scores):
        columns = scored.rollouts.response_mask[row].nonzero().flatten().tolist()
        kl = [float(scored.old_logprobs[row, t] - scored.reference_logprobs[row, t]) for t in columns]
        rewards = [-BETA * k for k in kl]
        rewards[-1] += score
        rows.append(rewards)
    return rows


def test_rewards_against_a_loop() -> None:
    scored = make_scored()
    mask = scored.rollouts.response_mask
    rewards = shape_rewards(scored.scores, BETA * k1(scored.old_logprobs, scored.reference_logprobs), mask)
    for row, expected in enumerate(naive_rewards(scored, scored.scores.tolist())):
        assert rewards[row, mask[row]].tolist() == pytest.approx(expected, abs=1e-6)
    assert (rewards[~mask] == 0).all()


def test_the_score_sits_on_eos_and_not_on_the_first_pad() -> None:
    scored = make_scored()
    mask = scored.rollouts.response_mask
    rewards = shape_rewards(scored.scores, torch.zeros_like(scored.old_logprobs), mask)
    for row, length in enumerate(scored.rollouts.lengths.tolist()):
        assert rewards[row].nonzero().flatten().tolist() == [length - 1]


def test_last_generated_with_gaps() -> None:
    mask = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    assert last_generated(mask).tolist() == [3, 0]
    with pytest.raises(ValueError, match=r"rows \[1\] have no generated token"):
        last_generated(torch.tensor([[True], [False]]))


def test_experience_against_its_parts() -> None:
    scored = make_scored()
    mask = scored.rollouts.response_mask
    experience, _ = to_experience(scored, BETA, make_ppo())
    rewards = shape_rewards(scored.scores, BETA * k1(scored.old_logprobs, scored.reference_logprobs), mask)
    advantages, returns = gae(rewards, scored.values, mask, 0.9, 0.8)
    torch.testing.assert_close(experience.actor.advantages, advantages)
    torch.testing.assert_close(experience.critic.returns, returns)
    torch.testing.assert_close(experience.actor.response_mask, mask)
    torch.testing.assert_close(experience.actor.old_logprobs, scored.old_logprobs)
    torch.testing.assert_close(experience.critic.values, scored.values)


@pytest.mark.parametrize("importance", ["none", "truncated", "icepop"])
@pytest.mark.parametrize("where", ["reward", "loss"])
def test_the_actor_is_sent_what_its_loss_reads(importance: str, where: str) -> None:
    scored = make_scored()
    ppo = make_ppo(policy={"importance": {"type": importance}}, kl={"where": where, "estimator": "k3"})
    actor = to_experience(scored, BETA, ppo)[0].actor
    rollout, reference = scored.rollouts.rollout_logprobs, scored.reference_logprobs
    assert torch.equal(actor.rollout_logprobs, rollout * (importance != "none"))
    assert torch.equal(actor.reference_logprobs, reference * (where == "loss"))
    assert rollout.any() and reference.any()


def test_whitening_moves_advantages_and_leaves_returns() -> None:
    scored = make_scored()
    plain, stats = to_experience(scored, BETA, make_ppo())
    white, white_stats = to_experience(scored, BETA, make_ppo(whiten_advantages=True))
    mask = scored.rollouts.response_mask
    assert white.actor.advantages[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white.actor.advantages[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(white.critic.returns, plain.critic.returns)
    assert stats == white_stats, "advantage/mean and std are those before whitening"


def test_whitened_rewards_keep_their_mean() -> None:
    scored = make_scored()
    mask = scored.rollouts.response_mask
    experience, stats = to_experience(scored, BETA, make_ppo(whiten_rewards=True))
    rewards = shape_rewards(scored.scores, BETA * k1(scored.old_logprobs, scored.reference_logprobs), mask)
    shaped = whiten(rewards, mask, shift_mean=False)
    assert shaped[mask].mean().item() == pytest.approx(rewards[mask].mean().item(), abs=1e-6)
    torch.testing.assert_close(experience.actor.advantages, gae(shaped, scored.values, mask, 0.9, 0.8)[0])
    assert stats.reward_mean == to_experience(scored, BETA, make_ppo())[1].reward_mean


def test_truncated_penalty_replaces_the_score() -> None:
    scored, ppo = make_scored(), make_ppo(truncated={"type": "penalty", "score": -7.0})
    shaped = shape_scores(scored.scores, scored.rollouts, ppo, RunningScale())
    ours, stats = to_experience(scored, BETA, ppo, scores=shaped)
    wanted, _ = to_experience(replace(scored, scores=torch.tensor([1.0, -7.0, -7.0, 4.0])), BETA, make_ppo())
    torch.testing.assert_close(ours.actor.advantages, wanted.actor.advantages)
    torch.testing.assert_close(ours.critic.returns, wanted.critic.returns)
    assert stats.score_mean == 2.5, "the raw scores are reported"
    assert stats.reward_mean == pytest.approx(
        sum(sum(row) for row in naive_rewards(scored, [1.0, -7.0, -7.0, 4.0])) / 4, abs=1e-6
    )


def paid(scored: Scored) -> Scored:
    """Two turns a row, the first one of a single token; the scores are what the environment paid."""
    mask, rewards = scored.rollouts.response_mask.clone(), torch.zeros_like(scored.rollouts.turn_rewards)
    for row in range(len(scored)):
        first, *_, last = mask[row].nonzero().flatten().tolist()
        mask[row, first + 1] = False  # the environment speaks
        rewards[row, [first, last]] = torch.tensor([2.0 + row, -1.0])
    numbers = {name: getattr(scored, name) * mask for name in ("old_logprobs", "reference_logprobs", "values")}
    rollouts = replace(scored.rollouts, response_mask=mask, turn_rewards=rewards)
    return replace(scored, rollouts=rollouts, scores=rewards.sum(1), **numbers)


LONG = [(2, 5), (1, 4), (3, 6), (2, 3)]


def test_what_a_turn_was_paid_stays_with_it() -> None:
    scored = paid(make_scored(LONG))
    experience, stats = to_experience(scored, BETA, make_ppo())
    rewards = (
        scored.rollouts.turn_rewards
        - BETA * k1(scored.old_logprobs, scored.reference_logprobs) * scored.rollouts.response_mask
    )
    advantages, returns = gae(rewards, scored.values, scored.rollouts.response_mask, 0.9, 0.8)
    torch.testing.assert_close(experience.actor.advantages, advantages)
    torch.testing.assert_close(experience.critic.returns, returns)
    assert stats.score_mean == pytest.approx(float(scored.scores.mean()))
    assert stats.turns_mean == 2.0


def test_where_scores_are_normalised_so_is_what_turns_were_paid() -> None:
    """Whoever counts in cents gets the same returns at every turn as who counts in whole coins."""

    def returns(unit: float) -> torch.Tensor:
        scored = paid(make_scored(LONG))
        rollouts = replace(scored.rollouts, turn_rewards=scored.rollouts.turn_rewards * unit)
        scored = replace(scored, rollouts=rollouts, scores=scored.scores * unit)
        ppo = make_ppo(score={"normalise": True})
        rollout = SimpleNamespace(responses_per_prompt=1)
        state: Any = SimpleNamespace(
            scale=RunningScale(), value_scale=RunningScale(), kl=SimpleNamespace(coefficient=0)
        )
        config: Any = SimpleNamespace(ppo=ppo, rollout=rollout)
        batch = OwnBatch(generated(prompts_of(len(scored)), [], scored), SeenRows(rollouts, scored.old_logprobs, []))
        prepare(batch, state, config)
        return batch.experience.critic.returns

    coins = returns(1.0)
    torch.testing.assert_close(returns(100.0), coins)
    assert float(coins.abs().max()) > 0.5


def test_what_becomes_of_a_score_becomes_of_its_sum() -> None:
    """A reward model's number, a normalisation, a penalty for being cut: the difference is on the last token."""
    scored = paid(make_scored(LONG))
    ppo = make_ppo(advantage={"type": "gae", "gamma": 1, "lambda": 1})
    shaped = torch.where(scored.rollouts.finished, scored.scores * 3 + 1, -7.0)
    experience, _ = to_experience(scored, 0.0, ppo, scores=shaped)
    for row in range(len(scored)):
        first = int(scored.rollouts.response_mask[row].nonzero()[0])
        total = float(shaped[row])
        assert float(experience.critic.returns[row, first]) == pytest.approx(total, abs=1e-5)
        assert float(experience.critic.returns[row, first + 2]) == pytest.approx(total - (2.0 + row), abs=1e-5)


def test_normalised_values_are_read_in_the_old_units_and_their_targets_are_in_the_new_ones() -> None:
    """Equal to a critic that has spoken in plain units; what the loss sees is what the critic said and shall say."""
    scored, ppo, scale = make_scored(), make_ppo(), RunningScale()
    scale.update(torch.tensor([10.0, 14.0]))  # mean 12, deviation 2
    plain, plain_stats = to_experience(replace(scored, values=scored.values * 2 + 12), BETA, ppo)
    before = scale.state_dict()
    ours, stats = to_experience(scored, BETA, ppo, value_scale=scale)
    assert scale.state_dict() == before, "it is pure"
    torch.testing.assert_close(ours.actor.advantages, plain.actor.advantages)
    assert stats.explained_variance == pytest.approx(plain_stats.explained_variance)
    torch.testing.assert_close(ours.critic.values, scored.values * ours.actor.response_mask)
    expected = RunningScale()
    expected.update(torch.cat([torch.tensor([10.0, 14.0]), plain.critic.returns[plain.actor.response_mask]]))
    torch.testing.assert_close(ours.critic.returns, plain.critic.returns)
    mask, units = plain.critic.response_mask, in_units_of(expected, ours.critic)
    torch.testing.assert_close(units.returns, expected.normalised(plain.critic.returns) * mask)
    torch.testing.assert_close(expected.restored(units.returns)[mask], plain.critic.returns[mask])
    assert units.values is ours.critic.values


@pytest.mark.parametrize("white", [False, True])
def test_truncated_mask_leaves_the_others_as_if_the_row_were_not_there(white: bool) -> None:
    scored = make_scored()
    ppo = make_ppo(truncated={"type": "mask"}, whiten_advantages=white, whiten_rewards=white)
    ours, stats = to_experience(scored, BETA, ppo)
    kept, kept_stats = to_experience(scored.select([0, 3]), BETA, ppo)
    width = kept.actor.token_ids.shape[1]
    numbers = {"actor": ("advantages", "old_logprobs", "rollout_logprobs"), "critic": ("returns", "values")}
    for role, name in [(role, name) for role, names in numbers.items() for name in ("response_mask", *names)]:
        tensor = getattr(getattr(ours, role), name)
        torch.testing.assert_close(tensor[[0, 3], :width], getattr(getattr(kept, role), name))
        assert not tensor[[1, 2]].any()
    assert stats.truncated_fraction == 0.5
    assert stats.reward_mean == pytest.approx(kept_stats.reward_mean)
    assert stats.advantage_std == pytest.approx(kept_stats.advantage_std)
    assert stats.explained_variance == pytest.approx(kept_stats.explained_variance)


def test_all_masked_gives_zeros_and_no_nan() -> None:
    scored = make_scored(truncated=(0, 1, 2, 3))
    ppo = make_ppo(truncated={"type": "mask"}, whiten_advantages=True, whiten_rewards=True)
    experience, stats = to_experience(scored, BETA, ppo)
    assert not experience.actor.response_mask.any()
    assert not experience.actor.advantages.any()
    assert stats.truncated_fraction == 1.0
    assert (stats.reward_mean, stats.advantage_mean, stats.advantage_std, stats.explained_variance) == (0, 0, 0, 0)


def test_truncated_bootstrap_adds_the_discounted_value_of_the_cut_state() -> None:
    scored = make_scored()
    plain, _ = to_experience(scored, BETA, make_ppo())
    ours, _ = to_experience(scored, BETA, make_ppo(truncated={"type": "bootstrap"}))
    for row in range(4):
        columns = scored.rollouts.response_mask[row].nonzero().flatten()
        cut = float(scored.values[row, columns[-1]]) if row in (1, 2) else 0.0
        distance = torch.arange(len(columns) - 1, -1, -1)
        extra = 0.9 * cut * (0.9 * 0.8) ** distance
        torch.testing.assert_close(ours.actor.advantages[row, columns], plain.actor.advantages[row, columns] + extra)


def test_one_response_of_one_token() -> None:
    experience, stats = to_experience(make_scored([(2, 1)], truncated=()), BETA, make_ppo(whiten_advantages=True))
    assert experience.actor.advantages.tolist() == [[0, 0, 0]]
    assert stats.score_std == 0.0
    assert stats.response_length_mean == 1.0


@pytest.mark.parametrize(("field", "role"), made_by().items())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_the_run(field: str, role: str, bad: float) -> None:
    scored = make_scored()
    tensor = getattr(scored.rollouts if role == "rollout" else scored, field).clone()
    tensor[1] = bad
    wrong: Any = {field: tensor}
    if role == "rollout":
        wrong = {"rollouts": replace(scored.rollouts, **wrong)}
    told = rf"the {role}'s {field} are not finite in rows \[1\] of the batch \(1 of 4; the first has the prompt 'p'\)"
    with pytest.raises(NotFinite, match=told) as caught:
        to_experience(replace(scored, **wrong), BETA, make_ppo())
    assert caught.value.role == role


def test_a_kl_in_the_loss_stays_out_of_the_reward() -> None:
    scored = make_scored([(2, 3)] * 4)
    ppo = make_ppo(kl={"where": "loss", "estimator": "k2"})
    experience, stats = to_experience(scored, BETA, ppo)
    free, _ = to_experience(scored, 0.0, make_ppo())
    torch.testing.assert_close(experience.critic.returns, free.critic.returns)
    torch.testing.assert_close(
        experience.actor.reference_logprobs, scored.reference_logprobs * scored.rollouts.response_mask
    )
    assert stats.kl != 0


def test_responses_to_one_prompt_are_compared_with_each_other() -> None:
    scored = make_scored([(2, 3)] * 4)
    ppo = PpoConfig.model_validate({"advantage": {"type": "dr_grpo"}})
    experience, _ = to_experience(scored, 0.0, ppo, responses_per_prompt=2)
    advantages = [
        float(row[mask][0])
        for row, mask in zip(experience.actor.advantages, scored.rollouts.response_mask, strict=True)
    ]
    assert advantages == pytest.approx([-0.5, 0.5, -0.5, 0.5])  # scores 1, 2 and 3, 4
