from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.advantages import CRITIC_FREE, VARIANTS, Estimator, Gae
from orchestrator.config.ppo import PpoConfig
from orchestrator.ppo.advantages import (
    ESTIMATORS,
    dr_grpo,
    gae,
    grpo,
    remax,
    rloo,
    whiten,
)

ROWS, TIME = 7, 12


def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values, mask: row 0 is full, row 1 has one token, row 2 none, the others have gaps and padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(ROWS, TIME, generator=generator) < 0.6
    mask[0], mask[1:3] = True, False
    mask[1, 4] = True
    return (*torch.randn(2, ROWS, TIME, dtype=torch.float64, generator=generator), mask)


def naive_gae(rewards: list[float], values: list[float], gamma: float, lambda_: float, bootstrap: float) -> list[float]:
    """A_t = Σ_l (γλ)^l δ_{t+l}, term by term, for one episode without gaps."""
    following = [*values, bootstrap][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [
        sum((gamma * lambda_) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (0.5, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_gae_against_the_sum_of_its_definition(seed: int, gamma: float, lambda_: float, bootstrapped: bool) -> None:
    rewards, values, mask = case(seed)
    after = torch.linspace(-1, 1, ROWS, dtype=torch.float64) if bootstrapped else None
    advantages, returns = gae(rewards, values, mask, gamma, lambda_, bootstrap=after)
    for row in range(ROWS):
        columns = mask[row].nonzero().flatten()
        expected = naive_gae(
            rewards[row, columns].tolist(),
            values[row, columns].tolist(),
            gamma,
            lambda_,
            0.0 if after is None else float(after[row]),
        )
        assert advantages[row, columns].tolist() == pytest.approx(expected)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_nothing_leaks_from_gaps_and_padding() -> None:
    rewards, values, mask = case(0)
    clean = gae(rewards, values, mask, 0.9, 0.9)
    poisoned = gae(torch.where(mask, rewards, torch.nan), torch.where(mask, values, torch.inf), mask, 0.9, 0.9)
    for ours, wanted in zip(poisoned, clean, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0)


def test_a_gap_costs_no_discount() -> None:
    rewards, values, _ = case(0)
    packed = torch.ones(1, 3, dtype=torch.bool)
    gappy = torch.tensor([[True, False, False, True, False, True]])
    spread_rewards, spread_values = torch.zeros(1, 6).double(), torch.zeros(1, 6).double()
    spread_rewards[gappy], spread_values[gappy] = rewards[0, :3], values[0, :3]
    dense, _ = gae(rewards[:1, :3], values[:1, :3], packed, 0.7, 0.8)
    sparse, _ = gae(spread_rewards, spread_values, gappy, 0.7, 0.8)
    torch.testing.assert_close(sparse[gappy], dense[0])


def test_lambda_one_returns_are_the_discounted_rewards_to_go() -> None:
    rewards, values, mask = case(1)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    expected = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, expected, 0.0))


def test_perfect_values_have_no_advantage() -> None:
    rewards, _, mask = case(2)
    values = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    advantages, _ = gae(rewards, values, mask, 1.0, 0.95)
    assert advantages.abs().max() < 1e-12


def test_gae_keeps_float32() -> None:
    rewards, values, mask = case(0)
    for out in gae(rewards.float(), values.float(), mask, 1.0, 0.95, bootstrap=torch.zeros(ROWS)):
        assert out.dtype == torch.float32


def test_the_table_is_called_with_the_variants_own_fields() -> None:
    rewards, values, mask = case(0)
    config = Gae.model_validate({"type": "gae", "gamma": 0.9, "lambda": 0.8})
    given = {"rewards": rewards, "values": values, "mask": mask, "bootstrap": None}
    ours = ESTIMATORS[Gae](**given, **config.model_dump(exclude={"type"}))
    torch.testing.assert_close(ours, gae(rewards, values, mask, 0.9, 0.8))


def test_the_critics_targets_may_have_another_lambda() -> None:
    rewards, values, mask = case(0)
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5, critic_lambda=1.0)
    torch.testing.assert_close(advantages, gae(rewards, values, mask, 0.9, 0.5)[0])
    torch.testing.assert_close(returns, gae(rewards, values, mask, 0.9, 1.0)[1])


GROUPS = torch.tensor([0, 1, 1, 0, 2, 1, 0])
"""Row 2 has no token: nobody is compared with it. Row 4 is alone."""


@pytest.mark.parametrize("seed", range(5))
def test_group_estimators_against_loops(seed: int) -> None:
    rewards, _, mask = case(seed)
    totals = [float(rewards[row][mask[row]].sum()) for row in range(ROWS)]
    for row in range(ROWS):
        group = [totals[other] for other in range(ROWS) if GROUPS[other] == GROUPS[row] and bool(mask[other].any())]
        others = list(group)
        if bool(mask[row].any()):
            others.remove(totals[row])
        mean = sum(group) / len(group)
        deviation = (sum((x - mean) ** 2 for x in group) / max(len(group) - 1, 1)) ** 0.5
        expected = {
            rloo: totals[row] - sum(others) / len(others) if others else 0.0,
            dr_grpo: totals[row] - mean,
            grpo: (totals[row] - mean) / (deviation + 1e-6),
        }
        for estimate, wanted in expected.items():
            ours = estimate(rewards, mask, GROUPS)[row]
            assert ours[mask[row]].tolist() == pytest.approx([wanted] * int(mask[row].sum()))
            assert (ours[~mask[row]] == 0).all()


def without_critic(variant: type[Estimator], rewards: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """With what the variant says that it needs."""
    given: dict[str, Any] = {"groups": GROUPS} if variant.compares_responses else {}
    given |= {"baselines": GROUPS} if variant.needs_greedy else {}
    found = ESTIMATORS[variant](rewards=rewards, mask=mask, **given, **options)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("kind", sorted(CRITIC_FREE))
def test_without_a_critic_nothing_leaks_from_padding_and_rows_that_are_left_out(kind: str) -> None:
    rewards, _, mask = case(3)
    variant, options = VARIANTS[kind], {"gamma": 0.9} if kind == "reinforce++" else {}
    poisoned = without_critic(variant, torch.where(mask, rewards, torch.nan), mask, **options)
    torch.testing.assert_close(poisoned, without_critic(variant, rewards, mask, **options))
    assert poisoned.dtype == rewards.dtype and (poisoned[~mask] == 0).all()


@pytest.mark.parametrize("score", [1.0, 3.3, 1000.7, 1e-7, -1e30])
@pytest.mark.parametrize("responses", [2, 3, 7, 16])
@pytest.mark.parametrize("estimate", [rloo, grpo, dr_grpo])
def test_responses_that_are_all_alike_teach_nothing(estimate: Any, responses: int, score: float) -> None:
    rewards, mask = torch.zeros(2 * responses, 3), torch.ones(2 * responses, 3, dtype=torch.bool)
    rewards[:, 2] = torch.tensor([score, 1.7]).repeat_interleave(responses)
    assert (estimate(rewards, mask, torch.arange(2).repeat_interleave(responses)) == 0).all()


def test_the_order_of_equal_rewards_in_a_response_is_no_preference() -> None:
    parts = torch.tensor([1000.7, 0.1, 0.2, 0.3])
    rewards = torch.stack([parts, parts.flip(0), parts.roll(1), parts.roll(2)])
    assert grpo(rewards, torch.ones_like(rewards, dtype=torch.bool), torch.zeros(4)).abs().max() < 1e-5


@contextmanager
def address_space(bytes_more: int) -> Iterator[None]:
    """Let this process map only so many bytes more: what asks for too much raises instead of filling the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + bytes_more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_hundred_thousand_responses_are_compared_in_little_memory() -> None:
    size, each = 100_000, 8
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(size, 1, generator=generator)
    groups = torch.arange(size // each).repeat_interleave(each)[torch.randperm(size, generator=generator)]
    members: dict[int, list[float]] = {}
    for reward, group in zip(rewards.flatten().tolist(), groups.tolist(), strict=True):
        members.setdefault(group, []).append(reward)
    wanted = []
    for reward, group in zip(rewards.flatten().tolist(), groups.tolist(), strict=True):
        mean = sum(members[group]) / each
        deviation = (sum((other - mean) ** 2 for other in members[group]) / (each - 1)) ** 0.5
        wanted.append((reward - mean) / (deviation + 1e-6))
    with address_space(200 << 20):
        ours = grpo(rewards, torch.ones(size, 1, dtype=torch.bool), groups)
    torch.testing.assert_close(ours.flatten(), torch.tensor(wanted))


@pytest.mark.parametrize("kind", sorted(CRITIC_FREE))
def test_every_estimator_without_a_critic_has_a_variant(kind: str) -> None:
    ppo = PpoConfig.model_validate({"advantage": {"type": kind}})
    assert not ppo.uses_critic and ppo.whitens == kind.startswith("reinforce")
    assert ppo.advantage.compares_responses == (kind not in ("reinforce++", "remax"))
    assert ppo.advantage.needs_greedy == (kind == "remax")
    rewards, _, mask = case(0)
    options = ppo.advantage.model_dump(exclude={"type"})
    assert without_critic(VARIANTS[kind], rewards, mask, **options).shape == mask.shape


def test_every_variant_has_its_function() -> None:
    assert set(ESTIMATORS) == set(VARIANTS.values())


@pytest.mark.parametrize("seed", range(3))
def test_remax_is_what_follows_less_the_greedy_score(seed: int) -> None:
    rewards, _, mask = case(seed)
    baselines = torch.arange(len(mask), dtype=rewards.dtype)
    got = remax(rewards, mask, baselines)
    for row in range(len(mask)):
        for t in range(mask.shape[1]):
            follows = sum(float(rewards[row, u]) for u in range(t, mask.shape[1]) if mask[row, u])
            assert float(got[row, t]) == pytest.approx(follows - row if mask[row, t] else 0.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_whiten_against_a_loop(seed: int) -> None:
    x, _, mask = case(seed)
    numbers = x[mask].tolist()
    mean = sum(numbers) / len(numbers)
    variance = sum((n - mean) ** 2 for n in numbers) / len(numbers)
    expected = [(n - mean) / variance**0.5 for n in numbers]
    assert whiten(x, mask)[mask].tolist() == pytest.approx(expected, abs=1e-6)
    kept = [n + mean for n in expected]
    assert whiten(x, mask, shift_mean=False)[mask].tolist() == pytest.approx(kept, abs=1e-6)
    assert (whiten(x, mask)[~mask] == 0).all()
    assert (whiten(x, mask, shift_mean=False)[~mask] == 0).all()


def test_one_valid_token_gives_zero_and_none_gives_zeros() -> None:
    x = torch.full((2, 3), 5.0)
    one = torch.tensor([[False, True, False], [False, False, False]])
    assert whiten(x, one).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert whiten(x, one, shift_mean=False)[0, 1] == 5.0
    assert whiten(x, torch.zeros_like(one)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("number", [3.3, 1000.7, -98765.4])
def test_equal_numbers_are_whitened_to_zero(number: float) -> None:
    x = torch.full((7, 13), number)
    assert whiten(x, torch.ones_like(x, dtype=torch.bool)).abs().max() < 1e-6


def test_whitening_does_not_read_masked_positions() -> None:
    x, _, mask = case(3)
    torch.testing.assert_close(whiten(torch.where(mask, x, torch.nan), mask), whiten(x, mask))


def test_whitening_is_the_same_after_a_shift_and_a_scale() -> None:
    x, _, mask = case(4)
    torch.testing.assert_close(whiten(3 * x + 7, mask), whiten(x, mask), atol=1e-7, rtol=1e-6)
