"""The value model: V of the state before each generated token, and its clipped regression to the returns.

Sequences flow in and values out; then a share of the experience flows in and the weights change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from roles.batch import Sequences
from roles.config.losses import ValueLossConfig
from roles.losses.value_loss import value_loss
from roles.measured import metric
from roles.models.networks import ValueModel
from roles.shares import CriticExperience, RankShare
from roles.zero.micro_batch import MicroBatch, Objective, per_token, picked, update
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel
from roles.zero.trained_rank import TrainedRank


@dataclass(frozen=True, slots=True)
class CriticStats:
    """An update over all ranks."""

    loss: float = metric("value/loss")
    """Mean over the optimizer steps; before `coefficient`."""
    clip_fraction: float = metric("value/clip_fraction")
    """Of the trained tokens of all optimizer steps."""
    gradient_norm: float = metric("value/gradient_norm")
    """Before clipping; mean over the optimizer steps."""
    learning_rate: float = metric("lr/critic")
    """Of the last optimizer step."""


class ValueSums(NamedTuple):
    """What a loss measures, summed over the trained tokens."""

    tokens: Tensor
    clipped: Tensor
    loss: Tensor
    """Weighted, before `coefficient`."""


class Critic(TrainedRank):
    """One rank of the value model."""

    def __init__(self, setup: ModelSetup, loss: ValueLossConfig, max_response_tokens: int) -> None:
        """`max_response_tokens`: what `mean: constant` divides by."""
        self._loss = loss
        self._max_response_tokens = max_response_tokens
        self._model = ShardedModel(setup, lambda: load_critic(setup))

    def values(self, sequences: Sequences) -> Tensor:
        """float32 `[n]`: the value of the state before each generated token, row after row."""
        return per_token(self._model, sequences, self._forward)

    def update(self, share: RankShare[CriticExperience]) -> CriticStats:
        """The optimizer steps of this rank's share."""
        objective = Objective(self._micro_batch_loss, ValueSums, self._loss.mean, self._max_response_tokens)
        done = update(self._model, share, objective)
        return CriticStats(
            loss=float((done.steps.loss / done.denominators).mean()),
            clip_fraction=float(done.total.clipped) / max(float(done.total.tokens), 1),
            gradient_norm=done.gradient_norm,
            learning_rate=done.learning_rate,
        )

    def update_from(self, steps: list[list[int]], *parts: CriticExperience) -> CriticStats:
        """`update` with a share whose rows come in several parts."""
        return self.update(RankShare(CriticExperience.concatenate(parts), steps))

    def save_model(self, folder: str | Path, mean: float = 0.0, deviation: float = 1.0) -> None:
        """A Hugging Face folder of a sequence classifier, whose numbers are values: the critic's own times `deviation`
        plus `mean` (of the returns, where targets were normalised)."""
        self._model.module.rescale(mean, deviation)
        self._model.save_model(folder)

    def _forward(self, micro: MicroBatch) -> Tensor:
        values: Tensor = self._model(packed=micro.packed, positions=micro.positions)
        return values

    def _micro_batch_loss(self, batch: CriticExperience, rows: list[int], weights: Tensor) -> tuple[Tensor, ValueSums]:
        """The weighted sum of the losses of `rows`, and what it measured."""
        device = self._model.device
        values = self._forward(MicroBatch.of(batch, rows, device))
        old, returns = picked(batch.values, batch, rows, device), picked(batch.returns, batch, rows, device)
        losses, clipped = value_loss(values, old, returns, self._loss.clip)
        loss = (losses * picked(weights, batch, rows, device)).sum()
        with torch.no_grad():
            tokens = torch.tensor(float(len(old)), device=device)
            measured = ValueSums(tokens=tokens, clipped=clipped.sum(), loss=loss)
        return self._loss.coefficient * loss, measured


def load_critic(setup: ModelSetup) -> ValueModel:
    """A folder without a head (a language model) gets one that values every state at 0."""
    return ValueModel.load(
        setup.model_path,
        dtype=setup.torch_dtype,
        zero_head=True,
        gradient_checkpointing=setup.gradient_checkpointing,
        trust_remote_code=setup.trust_remote_code,
    )
