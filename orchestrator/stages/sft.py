"""`tetrarch sft`: a policy from demonstrations, with the cross-entropy of their responses.

An SftRun flows in; the folder of a language model flows out, from which the next stages start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.config.sft import SFT_QUALITY, SftRun
from orchestrator.data.demonstrations import SftData
from orchestrator.groups.spread import spread
from orchestrator.report.reporter import Reporter
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.resuming import Resume
from orchestrator.stages.policy_from_data import PolicyTraining, train_policy
from roles.batch import Sequences
from roles.measured import measured
from roles.packing import balance
from roles.shares import Demonstrations, RankShare
from roles.supervised import Supervised


@dataclass(frozen=True, slots=True)
class SftQuality:
    """How well the policy foresees demonstrations that it was not trained on."""

    loss: float
    """Nats per trained token."""
    perplexity: float
    samples: int

    def metrics(self) -> dict[str, float]:
        """By the names of `orchestrator.metrics`."""
        return {"sft/heldout_loss": self.loss, "sft/heldout_perplexity": self.perplexity}


def train_sft(config: SftRun, resume: Resume, data: SftData) -> SftQuality | None:
    """Train, test on what is held out, save to `sft.output`. None if nothing is held out."""

    def stage(
        cluster: RayCluster, trainer: RoleGroup[Any], steps: list[list[int]], report: Reporter, folder: Path
    ) -> SupervisedTraining:
        learned = LearnedData.demonstrations(data.digest(), len(steps))
        return SupervisedTraining(cluster, trainer, steps, learned, report, config, data)

    quality: SftQuality | None = train_policy(config, config.sft, resume, data, Supervised, stage, title="SFT")
    return quality


@dataclass(slots=True)
class SupervisedTraining(PolicyTraining):
    """A policy in fine-tuning."""

    quality_file = SFT_QUALITY
    quality_metric = "-sft/heldout_loss"
    config: SftRun
    data: SftData

    @property
    def section(self) -> PolicyTrainingConfig:
        """`sft`."""
        return self.config.sft

    def learn(self) -> dict[str, float]:
        """Take an optimizer step on the demonstrations of the current step; its metrics."""
        shares = _shares(self.data.training.select(self.schedule[self.step]), len(self.trainer))
        return measured(self.trainer.map(Supervised.update, shares).result(self.config.deadlines.update_s)[0])

    def test(self) -> dict[str, float]:
        """Measure how well the policy foresees what is held out; its metrics."""
        heldout = self.data.heldout
        assert heldout is not None
        asked = spread(self.trainer, Supervised.losses, Sequences.of(heldout))
        losses = asked.tokens(heldout.response_mask, self.config.deadlines.score_s)
        loss = float(losses.double().sum() / heldout.response_mask.sum())
        self.quality = SftQuality(loss, math.exp(min(loss, 700.0)), len(heldout))
        return self.quality.metrics()

    def told(self) -> str:
        """The quality, for the user."""
        return f"{self.quality.loss:.4f} nats per token, perplexity {self.quality.perplexity:.3f}"


def _shares(step: Demonstrations, ranks: int) -> list[RankShare[Demonstrations]]:
    """Each rank's part of one optimizer step, shared out by tokens."""
    parts = balance(step.lengths.tolist(), ranks)
    return [RankShare(step.select(rows), [list(range(len(rows)))]) for rows in parts]
