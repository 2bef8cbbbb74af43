"""What the ranks of trained roles have in common: they save and load the state of their sharded model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from roles.shares import Demonstrations
from roles.zero.micro_batch import MicroBatch, picked
from roles.zero.policy_loading import load_policy
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel


class TrainedRank:
    """One rank of a role that is trained."""

    _model: ShardedModel

    def save_state(self, folder: str | Path) -> dict[str, str]:
        """Everything that `load_state` needs to continue exactly; path in `folder` → hash of this rank's files."""
        return self._model.save_state(folder)

    def begin_saving(self, folder: str | Path) -> dict[str, str]:
        """Copy what `save_state` would write to host memory, and write it in a thread."""
        return self._model.save_state(folder, behind=True)

    def written(self) -> dict[str, str] | None:
        """What `save_state` would return, once the thread has written everything; before, None."""
        return self._model.written()

    def load_state(self, folder: str | Path) -> None:
        """Continue where `save_state` was called."""
        self._model.load_state(folder)

    def slow_down(self, factor: float) -> None:
        """Multiply the learning rate from here on."""
        self._model.slow_down(factor)


class ImitationSums(NamedTuple):
    """What the cross-entropy measures, summed over the trained tokens."""

    tokens: Tensor
    loss: Tensor
    """Nats."""


class TrainedPolicy(TrainedRank):
    """One rank of a language model that is trained."""

    def __init__(self, setup: ModelSetup) -> None:
        self._model = ShardedModel(setup, lambda: load_policy(setup))

    def save_model(self, folder: str | Path) -> None:
        """A Hugging Face folder that transformers and vLLM open."""
        self._model.save_model(folder)

    def _logprobs(self, micro: MicroBatch) -> Tensor:
        """float `[n]`: log-probabilities of the scored tokens at temperature 1, in nats."""
        logprobs: Tensor = self._model(
            packed=micro.packed, positions=micro.positions, labels=micro.labels, temperature=1.0
        )[0]
        return logprobs

    def _imitation_loss(self, batch: Demonstrations, rows: list[int], weights: Tensor) -> tuple[Tensor, ImitationSums]:
        """The weighted sum of the cross-entropies of `rows`, and what it measured."""
        device = self._model.device
        micro = MicroBatch.of(batch, rows, device)
        losses = -self._logprobs(micro)
        tokens = torch.tensor(float(len(losses)), device=device)
        loss = (losses * picked(weights, batch, rows, device)).sum()
        return loss, ImitationSums(tokens, losses.sum())
