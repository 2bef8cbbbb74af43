"""A policy that imitates: demonstrations flow in, the weights follow the cross-entropy of their responses.

It saves a folder that `roles.actor.Actor` opens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from roles.batch import Sequences
from roles.measured import metric
from roles.shares import Demonstrations, RankShare
from roles.zero.micro_batch import Objective, per_token, update
from roles.zero.trained_rank import ImitationSums, TrainedPolicy


@dataclass(frozen=True, slots=True)
class SupervisedStats:
    """Some optimizer steps over all ranks."""

    loss: float = metric("sft/loss")
    """Nats per trained token."""
    tokens: float = metric("sft/tokens")
    """Tokens that were trained on."""
    gradient_norm: float = metric("sft/gradient_norm")
    """Before clipping; mean over the steps."""
    learning_rate: float = metric("lr/actor")
    """Of the last step."""


class Supervised(TrainedPolicy):
    """One rank of a policy that is fine-tuned on demonstrations."""

    def update(self, share: RankShare[Demonstrations]) -> SupervisedStats:
        """The optimizer steps of this rank's share; each minimises the mean over its trained tokens on all ranks."""
        done = update(self._model, share, Objective(self._imitation_loss, ImitationSums, "token"))
        tokens = float(done.total.tokens)
        return SupervisedStats(float(done.total.loss) / max(tokens, 1), tokens, done.gradient_norm, done.learning_rate)

    def losses(self, sequences: Sequences) -> Tensor:
        """float32 `[n]`: cross-entropy of each token in the response mask, row after row, in nats."""
        return per_token(self._model, sequences, lambda micro: -self._logprobs(micro))
