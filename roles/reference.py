"""The frozen policy that the KL penalty is measured against. Sequences flow in, log-probabilities out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from roles.batch import Sequences
from roles.models.early_end import ANY_TIME, EarlyEnd
from roles.zero.micro_batch import MicroBatch, per_token
from roles.zero.policy_loading import load_policy
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel


class FrozenPolicy(Protocol):
    """Whatever the KL penalty is measured against: a reference of its own, or an actor without its adapters."""

    def reference_logprobs(self, sequences: Sequences) -> Tensor:
        """float32 `[n]`: log-probability of each generated token, row after row, at the rollouts' temperature and
        without the tokens that they forbid."""

    def reference_fingerprint(self) -> str:
        """A hash of all weights: it must never change, whatever the number of ranks."""


class Reference:
    """One rank of the frozen policy."""

    def __init__(self, setup: ModelSetup, temperature: float, early_end: EarlyEnd = ANY_TIME) -> None:
        self._temperature = temperature
        self._early_end = early_end
        self._model = ShardedModel(setup, lambda: load_policy(setup))

    def reference_logprobs(self, sequences: Sequences) -> Tensor:
        """float32 `[n]`: log-probability of each generated token, row after row, at the rollouts' temperature and
        without the tokens that they forbid."""

        def forward(micro: MicroBatch) -> Tensor:
            logprobs: Tensor = self._model(
                packed=micro.packed,
                positions=micro.positions,
                labels=micro.labels,
                temperature=self._temperature,
                forbidden=self._early_end.forbidden(micro.places),
            )[0]
            return logprobs

        return per_token(self._model, sequences, forward)

    def reference_fingerprint(self) -> str:
        """A hash of all weights: it must never change, whatever the number of ranks."""
        return self._model.fingerprint()
