"""Per-token rewards and values → advantages and returns. Pure maths; `orchestrator.experience` calls it on the driver.

To add an estimator: one function and one line in `ADVANTAGES`. Float types are kept: float32 in a run, float64 in some
tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to the variance in `whiten`, as in OpenAI's and OpenRLHF's code."""


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lambda_: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equations 11, 12 and 16).

    δ_t = r_t + γ·V_{t+1} - V_t and A_t = δ_t + γλ·A_{t+1}, where t+1 is the next position **with the mask True**: a gap
    (tool or environment tokens) costs no γλ; neither its values and rewards nor those of the padding are read.

    Args:
        rewards, values: float `[batch, time]`; `values[b, t]` is V of the state before token t.
        mask: bool `[batch, time]`, True on generated tokens.
        gamma, lambda_: γ and λ.
        bootstrap: float `[batch]`: V of the state after the last token; None is 0 everywhere (all episodes end).

    Returns:
        advantages and returns (advantage + value), `[batch, time]`, 0 where the mask is False.
    """
    after = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap.to(values.dtype)
    future = torch.zeros_like(after)
    advantages = torch.zeros_like(values)
    for t in reversed(mask.any(0).nonzero().flatten().tolist()):
        valid, value = mask[:, t], values[:, t]
        current = rewards[:, t] + gamma * after - value + gamma * lambda_ * future
        future = torch.where(valid, current, future)
        after = torch.where(valid, value, after)
        advantages[:, t] = torch.where(valid, current, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / √(variance + 1e-8) over all True positions of the mask, with the **biased** variance (divided by n).

    One valid position gives 0, not NaN. Call it on the global batch, never on a micro-batch or a rank's shard.

    Args:
        x: float `[batch, time]`.
        mask: bool `[batch, time]`.
        shift_mean: False adds the mean again: only the scale changes.

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    count = mask.sum().clamp(min=1)
    mean = torch.where(mask, x, 0.0).sum() / count
    centred = torch.where(mask, x - mean, 0.0)
    scaled = centred * (centred.square().sum() / count + EPSILON).rsqrt()
    return scaled if shift_mean else torch.where(mask, scaled + mean, 0.0)


ADVANTAGES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"gae": gae}
"""By `ppo.advantage.type`: called with rewards, values, mask, and by name `bootstrap` and the variant's fields."""
