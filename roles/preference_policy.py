"""A policy that learns preferences: pairs of responses flow in, the weights follow a loss of the DPO family.

It saves a folder that `roles.actor.Actor` opens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roles.batch import Sequences
from roles.config.preference_losses import (
    HingeLoss,
    IpoLoss,
    OrpoLoss,
    PreferenceLossConfig,
    RobustLoss,
    SigmoidLoss,
    SimpoLoss,
)
from roles.losses.preference_loss import dpo, hinge, ipo, orpo, robust_dpo, simpo
from roles.shares import PreferencePairs, ReferencedResponses
from roles.zero.micro_batch import MicroBatch, per_token
from roles.zero.setup import ModelSetup
from roles.zero.sharded import Work
from roles.zero.trained_rank import TrainedPolicy


@dataclass(frozen=True, slots=True)
class PreferenceStats:
    """One optimizer step over all ranks, before its change of the weights; means over the pairs."""

    loss: float
    chosen_reward: float
    """β·log π/π_ref of the chosen response; without a reference its scaled log-probability per token."""
    rejected_reward: float
    margin: float
    """Chosen reward minus rejected reward."""
    accuracy: float
    """Share of the pairs with a margin above 0."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


class PreferencePolicy(TrainedPolicy):
    """One rank of a policy that is trained on pairs of responses."""

    def __init__(self, setup: ModelSetup, loss: PreferenceLossConfig) -> None:
        super().__init__(setup)
        self._loss = loss

    def update(self, pairs: PreferencePairs) -> PreferenceStats:
        """One optimizer step on this rank's pairs; it minimises the mean over the pairs on all ranks."""
        tokens = (pairs.chosen.lengths + pairs.rejected.lengths).tolist()
        sums = torch.zeros(5, dtype=torch.float64, device=self._model.device)
        sums[-1] = len(pairs)

        def loss(step: int, items: list[int]) -> Tensor:
            part = pairs.select(items)
            responses = ReferencedResponses.concatenate([part.chosen, part.rejected])
            rows = list(range(len(responses)))
            logprobs = self._logprobs(micro := MicroBatch.of(responses, rows, self._model.device))
            if not items:
                return 0.0 * logprobs.sum()
            summed = logprobs.new_zeros(len(rows)).index_add(0, micro.sequences, logprobs)
            counts = responses.response_mask.sum(1).to(summed.device)
            losses, rewards = preference_losses(
                self._loss, summed, responses.reference_logprob.to(summed.device), counts
            )
            chosen, rejected = rewards.detach().chunk(2)
            measured = [losses.detach().sum(), chosen.sum(), rejected.sum(), (chosen > rejected).sum()]
            sums[:4] += torch.stack([number.double() for number in measured])
            return losses.sum()

        (facts,) = self._model.train([Work(tokens, float(len(pairs)))], loss)
        *totals, count = self._model.total(sums).tolist()
        mean_loss, chosen, rejected, accuracy = (total / max(count, 1) for total in totals)
        return PreferenceStats(
            mean_loss, chosen, rejected, chosen - rejected, accuracy, facts.gradient_norm, facts.learning_rate
        )

    def logprobs(self, sequences: Sequences) -> Tensor:
        """float32 `[batch, time]`: log-probability of each token in the response mask, in nats; 0 elsewhere. Before
        the first update these are the reference's."""
        return per_token(self._model, sequences, self._logprobs)


def preference_losses(
    config: PreferenceLossConfig, logprobs: Tensor, reference: Tensor, tokens: Tensor
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
