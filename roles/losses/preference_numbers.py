"""What a configured loss of the DPO family says of a batch: log-probabilities of its responses flow in, losses and
rewards flow out, and sums from which the numbers of a step or of an evaluation are made. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from roles.config.preference_losses import (
    SOFT_LABELS,
    HingeLoss,
    IpoLoss,
    KtoLoss,
    OrpoLoss,
    PairLossConfig,
    PreferenceLossConfig,
    RobustLoss,
    SigmoidLoss,
    SimpoLoss,
)
from roles.losses.preference_loss import dpo, hinge, ipo, kto, orpo, robust_dpo, simpo
from roles.measured import metric
from roles.shares import LabelledResponses, PreferenceBatch, PreferencePairs


class PreferenceSums(NamedTuple):
    """Sums over some pairs or labelled responses, scalars."""

    samples: Tensor
    """Number of pairs or labelled responses."""
    loss: Tensor
    right: Tensor
    """Pairs whose chosen response has the higher reward, a tie as half of one; or responses whose reward is on the side
    of the KL that their label says."""
    chosen: Tensor
    """Number of chosen or desirable responses."""
    chosen_reward: Tensor
    rejected: Tensor
    """Number of rejected or undesirable responses."""
    rejected_reward: Tensor
    drift: Tensor
    """Of all responses: log π_ref - log π, in nats."""


@dataclass(frozen=True, slots=True)
class PreferenceNumbers:
    """Means over some pairs or labelled responses."""

    loss: float = metric("dpo/loss")
    accuracy: float = metric("dpo/accuracy")
    """Share of pairs with the higher reward for the chosen response; with labels, of responses on the right side of
    the KL estimate."""
    chosen_reward: float | None = metric("dpo/chosen_reward")
    """β·log π/π_ref of the chosen responses; without a reference their scaled log-probability per token. None if there
    is no such response."""
    rejected_reward: float | None = metric("dpo/rejected_reward")
    """The same of the rejected ones."""
    margin: float | None = metric("dpo/margin")
    """Chosen reward minus rejected reward."""
    kl: float | None = metric("dpo/kl")
    """log π_ref - log π of a response, in nats: unbiased for KL(π_ref‖π) where the reference has given the responses.
    None without a reference."""
    mismatched_kl: float | None = metric("dpo/mismatched_kl")
    """KTO's estimate of KL(π‖π_ref), in nats. None without labels."""

    @classmethod
    def of(cls, sums: Sequence[Tensor], config: PreferenceLossConfig, kl: Tensor) -> Self:
        """The means of sums in the order of `PreferenceSums`; `kl` as in `judged`."""
        total = PreferenceSums(*sums)
        chosen, rejected = (
            float(reward / count) if count else None
            for reward, count in ((total.chosen_reward, total.chosen), (total.rejected_reward, total.rejected))
        )
        margin = None if chosen is None or rejected is None else chosen - rejected
        loss, accuracy = (float(number / total.samples.clamp(min=1)) for number in (total.loss, total.right))
        drift = float(total.drift / (total.chosen + total.rejected).clamp(min=1))
        drifted = drift if config.referenced else None
        return cls(loss, accuracy, chosen, rejected, margin, drifted, float(kl) if config.type == "kto" else None)


def judged(
    config: PreferenceLossConfig, batch: PreferenceBatch, logprobs: Tensor, kl: Tensor
) -> tuple[Tensor, PreferenceSums]:
    """The loss of each sample, with a gradient, and what was measured.

    Args:
        logprobs: float `[responses]`, in nats: the policy's, summed over each of `batch.responses`.
        kl: KTO's estimate, one number in nats; not read by losses of pairs.

    Returns:
        float `[samples]`, and sums in float64.
    """
    responses = batch.responses
    reference, tokens = responses.reference_logprob.to(logprobs.device), responses.response_mask.sum(1)
    drift = reference - logprobs
    if isinstance(config, KtoLoss):
        assert isinstance(batch, LabelledResponses)
        desirable, kl = batch.desirable.to(logprobs.device), kl.to(logprobs)
        gained, lost = config.desirable_weight, config.undesirable_weight
        weights = {"desirable_weight": gained, "undesirable_weight": lost}
        losses = kto(logprobs, reference, desirable, kl, beta=config.beta, **weights)
        rewards, above = -config.beta * drift, config.beta * (-drift - kl)
        right = torch.where(desirable, above, -above).sign()
        chosen, rejected = rewards[desirable], rewards[~desirable]
    else:
        assert isinstance(batch, PreferencePairs)
        losses, rewards = preference_losses(config, logprobs, reference, tokens.to(logprobs.device))
        if config.type in SOFT_LABELS:
            turned = (_turned(numbers) for numbers in (logprobs, reference, tokens.to(logprobs.device)))
            certainty = batch.certainty.to(losses)
            losses = certainty * losses + (1 - certainty) * preference_losses(config, *turned)[0]
        chosen, rejected = rewards.chunk(2)
        right = (chosen - rejected).sign()
    measured = [losses, (1 + right) / 2, chosen, rejected, drift]
    loss, share, chosen_reward, rejected_reward, total = (part.detach().double().sum() for part in measured)
    samples, better, worse = (share.new_tensor(float(len(part))) for part in (losses, chosen, rejected))
    return losses, PreferenceSums(samples, loss, share, better, chosen_reward, worse, rejected_reward, total)


def _turned(numbers: Tensor) -> Tensor:
    """`[2 * pairs]`, with the rejected responses first."""
    return torch.cat(numbers.chunk(2)[::-1])


def preference_losses(
    config: PairLossConfig, logprobs: Tensor, reference: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each pair, and the rewards of all responses.

    Args:
        logprobs, reference: float `[2 * pairs]`, in nats, summed over each response: first the chosen
            ones, then the rejected ones.
        tokens: int64 `[2 * pairs]`: trained tokens of each response.

    Returns:
        float `[pairs]` and float `[2 * pairs]`.
    """
    match config:
        case SimpoLoss() | OrpoLoss():
            chosen, rejected = (means := logprobs / tokens).chunk(2)
            if isinstance(config, OrpoLoss):
                return orpo(chosen, rejected, weight=config.weight), config.weight * means
            losses = simpo(chosen, rejected, beta=config.beta, target_margin=config.target_margin)
            return losses, config.beta * means
        case IpoLoss():
            logprobs, reference = logprobs / tokens, reference / tokens
    pairs, rewards = (*logprobs.chunk(2), *reference.chunk(2)), config.beta * (logprobs - reference)
    match config:
        case SigmoidLoss():
            return dpo(*pairs, beta=config.beta, label_smoothing=config.label_smoothing), rewards
        case RobustLoss():
            return robust_dpo(*pairs, beta=config.beta, label_smoothing=config.label_smoothing), rewards
        case IpoLoss():
            return ipo(*pairs, beta=config.beta), rewards
        case HingeLoss():
            return hinge(*pairs, beta=config.beta), rewards
