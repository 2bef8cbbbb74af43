"""The critic's loss: squared error with PPO's value clip. Pure."""

from __future__ import annotations

import torch
from torch import Tensor

from roles.losses.logprobs import wide


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """½·max((V - R)², (clip(V, V_old ± clip) - R)²) per token, as in OpenAI's baselines; with `clip=None` ½(V - R)².

    Args:
        values, old_values, returns: float `[...]`, in units of the reward. Masked positions are computed as well.
        clip: largest change of a value that counts, in the same units; None for no clip.

    Returns:
        Two tensors of the same shape: the loss, at least float32, and a bool that is True where the clipped term is the
        larger one.
    """
    new, target = wide(values), wide(returns.detach())
    plain = (new - target).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    old = wide(old_values.detach())
    bounded = (torch.clamp(new, old - clip, old + clip) - target).square()
    return 0.5 * torch.maximum(plain, bounded), bounded > plain
