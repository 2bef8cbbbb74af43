"""Advantage estimators: per-token rewards (and values) flow in, advantages flow out. Pure maths.

To add an estimator: one function and its line in `ESTIMATORS`, and one variant in `orchestrator.config.advantages`.
Float types are kept: float32 in a run, float64 in some tests. The estimators without a critic compare the responses to
one prompt by their summed rewards, KL penalty included (as verl does; OpenRLHF compares bare scores, which is the same
where β is 0), and give every token of a response the same advantage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from orchestrator.config.advantages import (
    DrGrpo,
    Estimator,
    Gae,
    Grpo,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    Rloo,
)
from orchestrator.ppo.moments import Moments

EPSILON = 1e-8
"""Added to the variance in `whiten`, as in OpenAI's and OpenRLHF's code."""
GROUP_EPSILON = 1e-6
"""Added to a group's standard deviation in `grpo`, as in verl's code."""


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lambda_: float,
    bootstrap: Tensor | None = None,
    critic_lambda: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equations 11, 12 and 16).

    δ_t = r_t + γ·V_{t+1} - V_t and A_t = δ_t + γλ·A_{t+1}, where t+1 is the next position **with the mask True**: a gap
    (tool or environment tokens) costs no γλ; neither its values and rewards nor those of the padding are read.

    Args:
        rewards, values: float `[batch, time]`; `values[b, t]` is V of the state before token t.
        mask: bool `[batch, time]`, True on generated tokens.
        gamma, lambda_: γ and λ.
        bootstrap: float `[batch]`: V of the state after the last token; None is 0 everywhere (all episodes end).
        critic_lambda: another λ for the returns, as in VAPO (arXiv 2504.05118, section 4.2); None is the same.

    Returns:
        advantages and returns (advantage + value), `[batch, time]`, 0 where the mask is False.
    """
    if critic_lambda is not None:
        advantages, _ = gae(rewards, values, mask, gamma, lambda_, bootstrap)
        return advantages, gae(rewards, values, mask, gamma, critic_lambda, bootstrap)[1]
    after = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    future = torch.zeros_like(after)
    paid, valued, inside = (each.t().contiguous() for each in (rewards, values, mask))  # columns are slow
    advantages = torch.zeros_like(valued)
    for t in reversed(inside.any(1).nonzero().flatten().tolist()):
        valid, value = inside[t], valued[t]
        current = paid[t] + gamma * after - value + gamma * lambda_ * future
        future = torch.where(valid, current, future)
        after = torch.where(valid, value, after)
        advantages[t] = torch.where(valid, current, 0.0)
    by_row = advantages.t().contiguous()
    return by_row, torch.where(mask, by_row + values, 0.0)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`whitened` by the moments of `x` itself, over all True positions of the mask."""
    return whitened(x, mask, Moments.where(x, mask), shift_mean)


def whitened(x: Tensor, mask: Tensor, over: Moments, shift_mean: bool = True) -> Tensor:
    """(x - mean) / √(variance + 1e-8), with the **biased** variance (divided by n).

    One number gives 0, not NaN.

    Args:
        x: float `[batch, time]`.
        mask: bool `[batch, time]`.
        over: moments of the numbers of the global batch, never of a micro-batch or of a rank's shard alone.
        shift_mean: False adds the mean again: only the scale changes.

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    scaled = torch.where(mask, x.double() - over.mean, 0.0) * (over.variance + EPSILON) ** -0.5
    return (scaled if shift_mean else torch.where(mask, scaled + over.mean, 0.0)).to(x.dtype)


def reinforce_plus_plus(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """REINFORCE++ (Hu et al., arXiv 2501.03262, equation 4): discounted rewards from each token on.

    They are whitened afterwards.

    Args:
        rewards: float `[batch, time]`.
        mask: bool `[batch, time]`, True on generated tokens; gaps cost no γ.
        gamma: γ.

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def reinforce_plus_plus_baseline(rewards: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """REINFORCE++-baseline (arXiv 2501.03262, section 3.2): minus the mean of the prompt's responses.

    Arguments and result as for `rloo`. Whitened afterwards: the divisor is the batch's standard deviation, not the
    group's as in GRPO.
    """
    return dr_grpo(rewards, mask, groups)


def rloo(rewards: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740, equation 8): minus the mean of the other responses.

    A prompt's only response has nothing to be compared with and gets 0.

    Args:
        rewards: float `[batch, time]`.
        mask: bool `[batch, time]`; rows without a True position are not compared.
        groups: int64 `[batch]`: rows with the same number answer the same prompt.

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    total, mean, _, count = _compared(rewards, mask, groups)
    return _spread((total - mean) * count / (count - 1).clamp(min=1), mask, rewards.dtype)


def grpo(rewards: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """GRPO (Shao et al., arXiv 2402.03300, section 4.1.2): minus the mean, divided by the unbiased standard deviation.

    Mean and standard deviation are those of the prompt's responses. Arguments and result as for `rloo`; responses with
    equal rewards get 0.
    """
    total, mean, deviation, _ = _compared(rewards, mask, groups)
    return _spread((total - mean) / (deviation + GROUP_EPSILON), mask, rewards.dtype)


def remax(rewards: Tensor, mask: Tensor, baselines: Tensor) -> Tensor:
    """ReMax (Li et al., arXiv 2310.10505, equation 6): rewards from each token on, minus the greedy response's score.

    Args:
        rewards: float `[batch, time]`.
        mask: bool `[batch, time]`, True on generated tokens.
        baselines: float `[batch]`: score of the greedy response to the same prompt, without a KL penalty (as in the
            authors' code).

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    return torch.where(mask, gae(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)[0] - baselines.unsqueeze(1), 0.0)


def dr_grpo(rewards: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """Dr. GRPO (Liu et al., arXiv 2503.20783, section 3.2): GRPO without the division.

    Arguments and result as for `rloo`. The other half of the method is the loss: `ppo.policy.mean: constant`.
    """
    total, mean, _, _ = _compared(rewards, mask, groups)
    return _spread(total - mean, mask, rewards.dtype)


def _compared(rewards: Tensor, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows' summed rewards and statistics of their groups, float64 `[batch]` each.

    Returns the summed reward minus the group's least one; then the mean, the unbiased standard deviation and the number
    of rows of the group. Arguments as for `rloo`. Memory is linear in the batch. Differences to the least reward are
    exact where all rewards are equal: such a group has mean and deviation 0, in which the rounding error of a mean
    would otherwise look like a preference.
    """
    total, present = torch.where(mask, rewards, 0.0).sum(1, dtype=torch.float64), mask.any(1).to(torch.float64)
    numbers, row_group = groups.unique(return_inverse=True)

    def by_group(values: Tensor) -> Tensor:
        return values.new_zeros(len(numbers)).index_add_(0, row_group, values)

    compared = torch.where(present > 0, total, torch.inf)
    least = total.new_zeros(len(numbers)).scatter_reduce_(0, row_group, compared, "amin", include_self=False)
    above = torch.where(present > 0, total - least[row_group], 0.0)
    count = by_group(present)
    mean = by_group(above) / count.clamp(min=1)
    squares = by_group((above - mean[row_group]).square() * present)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return above, mean[row_group], deviation[row_group], count[row_group]


def _spread(advantages: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, advantages.to(dtype).unsqueeze(1), 0.0)


ESTIMATORS: dict[type[Estimator], Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    Gae: gae,
    ReinforcePlusPlus: reinforce_plus_plus,
    ReinforcePlusPlusBaseline: reinforce_plus_plus_baseline,
    Rloo: rloo,
    ReMax: remax,
    Grpo: grpo,
    DrGrpo: dr_grpo,
}
"""Variant → function, called by name with `rewards`, `mask`, the variant's fields and what the variant needs. It
returns advantages `[batch, time]`; with a critic, advantages and returns (without one, both are the same)."""
