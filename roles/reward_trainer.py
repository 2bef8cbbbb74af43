"""Trains a reward model: compared responses flow in, the weights follow the Bradley–Terry loss. It scores meanwhile.

It saves a folder that `roles.reward_model.RewardModel` opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from roles.batch import Preferences, Sequences
from roles.config.models import Pooling
from roles.losses.preference_loss import bradley_terry
from roles.models.networks import ValueModel
from roles.packing import in_rows, pack
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel
from roles.zero.trained_rank import TrainedRank
from roles.zero.work import Term, Work


@dataclass(frozen=True, slots=True)
class RewardStats:
    """One optimizer step over all ranks."""

    loss: float
    """Mean over the comparisons."""
    accuracy: float
    """Comparisons that the model ordered rightly before the step."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float


class RewardTrainer(TrainedRank):
    """One rank of the reward model."""

    def __init__(self, setup: ModelSetup, pooling: Pooling | None = None) -> None:
        """A language model gets a new head; a reward model goes on with its own. `pooling`: see `ValueModel.load`."""
        self._model = ShardedModel(setup, lambda: load_for_training(setup, pooling))

    def update(self, preferences: Preferences) -> RewardStats:
        """One optimizer step on this rank's groups (all rows of a group are on one rank)."""
        groups = [(preferences.groups == group).nonzero().flatten().tolist() for group in preferences.groups.unique()]
        tokens = [int(preferences.lengths[rows].sum()) for rows in groups]
        comparisons = float(len(preferences.comparisons()))
        sums = torch.tensor([0.0, 0.0, comparisons], dtype=torch.float64, device=self._model.device)

        def loss(step: int, items: list[int]) -> Tensor:
            part = preferences.select([row for item in items for row in groups[item]])
            scores = self._forward(part)
            if not items:
                return 0.0 * scores.sum()
            better, worse = part.comparisons().to(scores.device).unbind(1)
            certainty = part.certainty.to(scores.device)[better]
            losses = bradley_terry(scores[better], scores[worse], certainty=certainty)
            right = (scores[better] > scores[worse]).sum()
            sums[:2] += torch.stack([losses.sum(), right]).detach().double()
            return losses.sum()

        (facts,) = self._model.train(Term([Work(tokens, comparisons)], loss))
        total_loss, right, count = self._model.total(sums).tolist()
        return RewardStats(total_loss / count, right / count, facts.gradient_norm, facts.learning_rate)

    def score(self, sequences: Sequences | Preferences) -> Tensor:
        """float32 `[batch]`: the number of each row, as `RewardModel` gives it."""
        with torch.no_grad():
            passes = self._model.passes(sequences.lengths.tolist())
            found = [(rows, self._forward(sequences.select(rows)).float()) for rows in passes]
        return in_rows(found, torch.zeros(len(sequences)))

    def save_model(self, folder: str | Path, score_shift: float = 0.0) -> None:
        """A sequence-classification folder; `score_shift` is what `RewardModel` will take off every number of today."""
        self._model.module.rescale(-score_shift, 1.0)
        self._model.save_model(folder)

    def _forward(self, sequences: Sequences | Preferences) -> Tensor:
        """`[batch]` with a gradient; a stand-in without a row, which keeps this rank in step with its peers."""
        token_ids, lengths = sequences.token_ids, sequences.lengths
        if not len(sequences):
            token_ids, lengths = torch.zeros(1, 2, dtype=torch.long), torch.tensor([2])
        packed = pack(token_ids, lengths).to(self._model.device)
        scores: Tensor = self._model(packed=packed, positions=packed.starts[1:].long() - 1)
        return scores


def load_for_training(setup: ModelSetup, pooling: Pooling | None) -> ValueModel:
    """The model in the setup's folder; a language model gets a new head (the N+ details, arXiv 2403.17031)."""
    return ValueModel.load(
        setup.model_path,
        dtype=setup.torch_dtype,
        new_head_seed=setup.seed,
        pooling=pooling,
        gradient_checkpointing=setup.gradient_checkpointing,
        trust_remote_code=setup.trust_remote_code,
    )
