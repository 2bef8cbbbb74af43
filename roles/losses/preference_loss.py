"""Losses over pairs of responses. Pure: tensors in, tensors out; one number per pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from roles.losses.logprobs import wide


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7), per pair.

    -log sigmoid(β·h), where h is log π/π_ref of the chosen response minus log π/π_ref of the rejected one. With
    `label_smoothing = ε` a label is wrong with probability ε: (1 - ε) times the loss of h plus ε times the loss of -h
    (Mitchell, ericmitchell.ai/cdpo.pdf).

    Args:
        chosen, rejected: float `[pairs]`, in nats: the policy's log-probabilities, summed over each response.
        reference_chosen, reference_rejected: float `[pairs]`, in nats: the reference's.
        beta: weight of the KL penalty.
        label_smoothing: ε, the probability that a label is wrong.

    Returns:
        float `[pairs]`.
    """
    margin = beta * _margin(chosen, rejected, reference_chosen, reference_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17): (h - 1/(2β))² per pair.

    h, arguments and result: see `dpo`. Log-probabilities are sums over a response, not means over its tokens.
    """
    return (_margin(chosen, rejected, reference_chosen, reference_rejected) - 1 / (2 * beta)).square()


def _margin(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) per pair (Ouyang et al., arXiv 2203.02155, equation 1).

    Args:
        chosen, rejected: float `[pairs]`: scores of the two responses.
        margin: by how much the score of the chosen response shall be higher, one number or `[pairs]` (Llama 2, arXiv
            2307.09288, equation 2).

    Returns:
        `[pairs]`, at least float32.
    """
    return -F.logsigmoid(wide(chosen) - wide(rejected) - margin)
