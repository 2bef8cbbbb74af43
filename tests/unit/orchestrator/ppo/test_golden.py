"""`orchestrator.ppo.advantages`, `kl` and `experience` against the golden values of other people's code.

Where the authors disagree, ours follows OpenRLHF and verl on the place of the score (the last generated token), verl on
gaps (they are skipped), and OpenRLHF and N+ on the variance of whitening (biased).
"""

from __future__ import annotations

import pytest
import torch

from orchestrator.ppo.advantages import (
    dr_grpo,
    gae,
    grpo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
    whiten,
)
from orchestrator.ppo.experience import shape_rewards
from orchestrator.ppo.kl import AdaptiveController
from roles.losses.kl_estimators import k1, k2, k3
from tests.reference.golden import Case, cases


@pytest.mark.parametrize("case", cases("gae"), ids=str)
def test_gae(case: Case) -> None:
    gamma, lambda_ = case.params["gamma"], case.params["lam"]
    advantages, returns = gae(case.inputs["rewards"], case.inputs["values"], case.mask, gamma, lambda_)
    authors = {name.split("_")[0] for name in case.outputs}
    assert authors >= {"openrlhf", "trl", "nplus"}
    for author in authors:
        case.check(f"{author}_adv", advantages)
        case.check(f"{author}_ret", returns)
    if "nplus_adv_whitened" in case.outputs:
        case.check("nplus_adv_whitened", whiten(advantages, case.mask))


@pytest.mark.parametrize("case", cases("gae_holes"), ids=str)
def test_gae_skips_gaps(case: Case) -> None:
    gamma, lambda_ = case.params["gamma"], case.params["lam"]
    advantages, _ = gae(case.inputs["rewards"], case.inputs["values"], case.mask, gamma, lambda_)
    case.check("verl_adv", advantages)


@pytest.mark.parametrize("case", cases("masked_whiten"), ids=str)
def test_whiten_has_the_biased_variance(case: Case) -> None:
    x, mask = case.inputs["x"], case.mask
    case.check("openrlhf", whiten(x, mask))
    case.check("nplus", whiten(x, mask))
    case.check("nplus_noshift", whiten(x, mask, shift_mean=False))
    count = int(mask.sum())
    case.check("verl", whiten(x, mask) * ((count - 1) / count) ** 0.5)


@pytest.mark.parametrize("case", cases("kl_estimators"), ids=str)
def test_kl_estimators(case: Case) -> None:
    new, reference = case.inputs["logprobs"], case.inputs["ref_logprobs"]
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
        ours = estimator(new, reference)
        if name != "k2":
            case.check(f"trl_{name}", ours)
        if name != "k3":
            case.check(f"verl_{name}", ours)
        case.check(f"openrlhf_{name}", ours.clamp(-10, 10))


@pytest.mark.parametrize("case", cases("reward_shaping"), ids=str)
def test_the_score_is_on_the_last_generated_token(case: Case) -> None:
    given, mask = case.inputs, case.mask
    rewards = shape_rewards(
        given["scores"], case.params["kl_coef"] * k1(given["logprobs"], given["ref_logprobs"]), mask
    )
    case.check("openrlhf", rewards)
    case.check("verl", rewards)
    _, returns = gae(rewards, given["values"], mask, case.params["gamma"], case.params["lam"])
    case.check("openrlhf_returns", returns)
    full = given["lengths"] == mask.shape[1]
    torch.testing.assert_close(rewards[full], case.outputs["nplus"][full], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("case", cases("adaptive_kl"), ids=str)
def test_adaptive_controller(case: Case) -> None:
    given = case.params
    controller = AdaptiveController(given["init"], given["target"], given["horizon"])
    path = []
    for kl in case.inputs["current"].tolist():
        controller.update(kl, given["n_steps"])
        path.append(controller.coefficient)
    for author in ("openrlhf", "verl"):
        case.check(author, torch.tensor(path, dtype=torch.float64))


@pytest.mark.parametrize("case", cases("critic_free_advantages"), ids=str)
def test_advantages_without_a_critic(case: Case) -> None:
    """OpenRLHF keeps the scores in float16 on the way."""
    rewards, mask, groups = case.inputs["token_level_rewards"], case.mask, case.inputs["group"].long()
    for name, ours in (
        ("rloo", rloo(rewards, mask, groups)),
        ("grpo", grpo(rewards, mask, groups)),
        ("grpo_nostd", dr_grpo(rewards, mask, groups)),
    ):
        case.check(f"verl_{name}", ours)
        case.check(f"openrlhf_{name}", ours, tolerance=2e-3)
    plus = whiten(reinforce_plus_plus(rewards, mask, case.params["gamma"]), mask)
    baseline = whiten(reinforce_plus_plus_baseline(rewards, mask, groups), mask)
    for name, ours in (("rfpp", plus), ("rfpp_baseline", baseline)):
        case.check(f"openrlhf_{name}", ours, tolerance=2e-3)
        count = int(mask.sum())  # verl divides by n - 1
        case.check(f"verl_{name}", ours * ((count - 1) / count) ** 0.5, tolerance=1e-5)


@pytest.mark.parametrize("case", cases("rfpp_returns"), ids=str)
def test_discounted_rewards_to_go(case: Case) -> None:
    rewards, mask = case.inputs["token_level_rewards"], case.mask
    ours = reinforce_plus_plus(rewards, mask, case.params["gamma"])
    case.check("openrlhf_returns", ours)
    case.check("verl_returns", ours)
