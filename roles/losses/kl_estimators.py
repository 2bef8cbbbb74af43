"""Estimators of the KL between policy and reference, in nats per token. Pure.

Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html. All three take log-probabilities of
sampled tokens in nats, float of any one shape, and give a tensor of that shape. Masked positions are computed like any
other. Nothing is clamped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log π - log π_ref per token: an unbiased estimate of KL(π‖π_ref) on the policy's own samples; may be negative."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """½(log π - log π_ref)² per token: biased as a value. Its gradient is an unbiased estimate of the gradient of the
    KL(π‖π_ref) of the **next token** given those before it. Summed over a response, this gradient leaves out the effect
    of a token on the KL of later tokens (Tang and Munos, arXiv 2506.09477)."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """π_ref/π - 1 - log(π_ref/π) per token: an unbiased estimate of KL(π‖π_ref), never negative. Its gradient is that
    of KL(π_ref‖π), the other direction."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""`ppo.kl.estimator` → function."""
