"""Estimators of the KL from the reference policy, per token (Schulman, "Approximating KL divergence", 2020). Pure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log π - log π_ref per token: unbiased for KL(π‖π_ref) on the policy's own samples; may be negative. No clamp.

    This and the other two: joschu.net/blog/kl-approx.html. Masked positions are computed like any other.
    """
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """½(log π - log π_ref)² per token: its gradient is an unbiased one of the **next token's** KL(π‖π_ref) given what
    came before; its value is biased. Over a response it leaves out what a token does to the KL of later ones (Tang and
    Munos, arXiv 2506.09477)."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π) per token: unbiased value, never negative; its gradient is KL(π_ref‖π)'s. No clamp."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By `ppo.kl.estimator`."""
