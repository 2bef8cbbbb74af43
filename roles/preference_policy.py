"""A policy that learns preferences: pairs or labelled responses flow in, the weights follow a loss of the DPO family.

It saves a folder that `roles.actor.Actor` opens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roles.batch import Sequences
from roles.config.preference_losses import PreferenceLossConfig
from roles.errors import LossNotFinite, RoleError
from roles.losses.preference_loss import kto_kl
from roles.losses.preference_numbers import PreferenceNumbers, PreferenceSums, judged
from roles.measured import metric
from roles.rows import put_back
from roles.shares import LabelledResponses, PreferenceBatch
from roles.zero.micro_batch import MicroBatch, per_token
from roles.zero.setup import ModelSetup
from roles.zero.trained_rank import TrainedPolicy
from roles.zero.work import Term, Work


@dataclass(frozen=True, slots=True)
class PreferenceStats:
    """One optimizer step over all ranks."""

    numbers: PreferenceNumbers
    """Before the step's change of the weights."""
    gradient_norm: float = metric("dpo/gradient_norm")
    """Before clipping."""
    learning_rate: float = metric("lr/actor")


class PreferencePolicy(TrainedPolicy):
    """One rank of a policy that learns preferences."""

    def __init__(self, setup: ModelSetup, loss: PreferenceLossConfig) -> None:
        super().__init__(setup)
        self._loss = loss

    def update(self, batch: PreferenceBatch) -> PreferenceStats:
        """One optimizer step on this rank's samples; it minimises the mean over the samples on all ranks."""
        kl = self._mismatched_kl(batch)
        sums = torch.zeros(len(PreferenceSums._fields), dtype=torch.float64, device=self._model.device)

        def loss(step: int, items: list[int]) -> Tensor:
            part = batch.select(items)
            responses = part.responses
            rows = list(range(len(responses)))
            logprobs = self._logprobs(micro := MicroBatch.of(responses, rows, self._model.device))
            if not items:
                return 0.0 * logprobs.sum()
            summed = logprobs.new_zeros(len(rows)).index_add(0, micro.sequences, logprobs)
            losses, measured = judged(self._loss, part, summed, kl)
            sums.add_(torch.stack(measured))
            return losses.sum()

        try:
            (facts,) = self._model.train(Term([Work(batch.tokens.tolist(), float(len(batch)))], loss))
        except LossNotFinite as error:
            raise RoleError(
                f"the loss of samples {batch.rows[error.items].tolist()} of the data is not finite; lower "
                "optimizer.learning_rate, or look at these samples"
            ) from error
        numbers = PreferenceNumbers.of(self._model.total(sums).unbind(), self._loss, kl)
        return PreferenceStats(numbers, facts.gradient_norm, facts.learning_rate)

    def response_logprobs(self, sequences: Sequences) -> Tensor:
        """float32 `[batch]`: log-probability of each response, in nats, summed over its mask. Before the first update
        these are the reference's."""
        logprobs = per_token(self._model, sequences, self._logprobs)
        return put_back(logprobs.double(), sequences.response_mask).sum(1).float()

    def reference_fingerprint(self) -> str:
        """Before the first update: a hash of all weights that the reference has, the same for any number of ranks."""
        return self._model.fingerprint(adapted=False)

    def _mismatched_kl(self, batch: PreferenceBatch) -> Tensor:
        """KTO's estimate over the responses of all ranks, so that it depends on neither ranks nor micro-batches; 0 for
        pairs."""
        if not isinstance(batch, LabelledResponses):
            return torch.zeros(())
        policy = self.response_logprobs(Sequences.of(batch.mismatched))
        own = [policy.double().sum(), batch.mismatched.reference_logprob.double().sum(), torch.tensor(len(batch))]
        policy_sum, reference_sum, count = self._model.total(torch.stack([number.double() for number in own]))
        return kto_kl(policy_sum / count, reference_sum / count)
