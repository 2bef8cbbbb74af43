"""Losses over preferred and other responses. Pure: tensors in, tensors out; one number per pair or response."""

from __future__ import annotations

import torch
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

    h, arguments and result: see `dpo`. The paper's log-probabilities are sums over a response; with means over its
    tokens for policy and reference, the target 1/(2β) is one per token.
    """
    return (_margin(chosen, rejected, reference_chosen, reference_rejected) - 1 / (2 * beta)).square()


def robust_dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """DPO's loss of the true labels, estimated without bias from labels of which each is wrong with probability ε < 1/2
    (Chowdhury et al., arXiv 2403.00409): ((1 - ε)·L(h) - ε·L(-h)) / (1 - 2ε) per pair, L as in `dpo`.

    It may be negative. Arguments and result: see `dpo`.
    """
    margin = beta * _margin(chosen, rejected, reference_chosen, reference_rejected)
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """max(0, 1 - β·h) per pair: the hinge of SLiC on DPO's margin (Liu et al., arXiv 2309.06657).

    h, arguments and result: see `dpo`.
    """
    return F.relu(1 - beta * _margin(chosen, rejected, reference_chosen, reference_rejected))


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, target_margin: float) -> Tensor:
    """SimPO, without a reference (Meng et al., arXiv 2405.14734, equation 6): -log sigmoid(β·(c - r) - γ) per pair.

    Args:
        chosen, rejected: float `[pairs]`, in nats per token: the policy's log-probabilities, means over each response.
        beta: scale of the rewards.
        target_margin: γ, by how much the reward β·c shall be higher.

    Returns:
        float `[pairs]`.
    """
    return -F.logsigmoid(beta * (chosen - rejected) - target_margin)


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float) -> Tensor:
    """ORPO, without a reference (Hong et al., arXiv 2403.07691, equations 6 and 7), per pair: the cross-entropy of the
    chosen response and `weight` times -log sigmoid of the log odds ratio, where odds(p) = p / (1 - p).

    Args:
        chosen, rejected: float `[pairs]`, in nats per token, < 0: the policy's log-probabilities, means over each
            response; p is e to this power.
        weight: λ.

    Returns:
        float `[pairs]`.
    """
    return -chosen - weight * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman–Tversky optimisation (Ethayarajh et al., ICML 2024, arXiv 2402.01306, equation 8), per response.

    λ_D·(1 - sigmoid(β·(r - z))) of a desirable response and λ_U·(1 - sigmoid(β·(z - r))) of another, where r is
    log π/π_ref of the response and z is `kl`.

    Args:
        policy, reference: float `[batch]`, in nats: log-probabilities, summed over each response.
        desirable: bool `[batch]`.
        kl: z, one number without a gradient, in nats, as `kto_kl` estimates it.
        beta: weight of the KL penalty.
        desirable_weight, undesirable_weight: λ_D and λ_U. For unbalanced classes choose them so that λ_D times the
            number of desirable responses is 1 to 3/2 times λ_U times the number of others (equation 9).

    Returns:
        float `[batch]`.
    """
    distance = beta * (policy - reference - kl.detach())
    gained = desirable_weight * torch.sigmoid(-distance)
    return torch.where(desirable, gained, undesirable_weight * torch.sigmoid(distance))


def kto_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's estimate of KL(π‖π_ref) from other prompts' responses (arXiv 2402.01306, section 4.1): one number ≥ 0, in
    nats, without a gradient.

    Args:
        policy, reference: float `[batch]`, in nats: log-probabilities, summed over each response, of another row's
            response after the prompt of each row; or their means. All of an optimizer step, so that ranks and
            micro-batches change nothing.
    """
    return (policy - reference).detach().mean().clamp(min=0)


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e^logprob, exact also for p near 0 and 1."""
    return logprob - torch.log(-torch.expm1(logprob))


def _margin(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, certainty: Tensor | float = 1.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) per pair (Ouyang et al., arXiv 2203.02155, equation 1).

    With a soft label it is the cross-entropy to the probability `certainty` that the chosen response is better (Lee et
    al., RLAIF, arXiv 2309.00267).

    Args:
        chosen, rejected: float `[pairs]`: scores of the two responses.
        margin: by how much the score of the chosen response shall be higher, one number or `[pairs]` (Llama 2, arXiv
            2307.09288, equation 2).
        certainty: probability that the chosen response is better, one number or `[pairs]`.

    Returns:
        `[pairs]`, at least float32.
    """
    distance = wide(chosen) - wide(rejected) - margin
    return -certainty * F.logsigmoid(distance) - (1 - certainty) * F.logsigmoid(-distance)
