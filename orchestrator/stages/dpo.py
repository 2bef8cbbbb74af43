"""`tetrarch dpo`: a policy from comparisons or labelled responses, with a loss of the DPO family.

A DpoRun flows in; the folder of a language model flows out, which `tetrarch train`, `serve` and vLLM open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.config.dpo import DPO_QUALITY, DpoRun
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.data.preference_samples import DpoData
from orchestrator.errors import CheckpointError
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.resuming import Resume
from orchestrator.stages.policy_from_data import PolicyTraining, train_policy
from orchestrator.stages.reference_logprobs import ReferenceLogprobs, ask_reference, response_logprobs
from roles.losses.preference_loss import kto_kl
from roles.losses.preference_numbers import PreferenceNumbers, judged
from roles.measured import measured
from roles.packing import balance
from roles.preference_policy import PreferencePolicy


def train_dpo(config: DpoRun, resume: Resume, data: DpoData) -> PreferenceNumbers | None:
    """Ask the reference, train, test on what is held out, save to `dpo.output`. None if nothing is held out."""
    dpo = config.dpo

    def stage(
        cluster: RayCluster, trainer: RoleGroup[Any], steps: list[list[int]], report: Reporter, folder: Path
    ) -> PreferenceTraining:
        reference = ask_reference(trainer, config, folder, data, report)  # before a checkpoint is loaded
        learned = LearnedData.preferences(data.training.digest(), len(steps))
        return PreferenceTraining(cluster, trainer, steps, learned, report, config, data, reference)

    quality: PreferenceNumbers | None = train_policy(
        config, dpo, resume, data, PreferencePolicy, stage, title="DPO", arguments=(dpo.loss,)
    )
    return quality


@dataclass(slots=True)
class PreferenceTraining(PolicyTraining):
    """A policy that learns preferences."""

    quality_file = DPO_QUALITY
    quality_metric = "-dpo/heldout_loss"
    config: DpoRun
    data: DpoData
    reference: ReferenceLogprobs

    @property
    def section(self) -> PolicyTrainingConfig:
        """`dpo`."""
        return self.config.dpo

    def state_dict(self) -> dict[str, Any]:
        """As of every training of a policy on a data set, and the hash of the reference."""
        return {**PolicyTraining.state_dict(self), "reference": self.reference.model}

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if the checkpoint is of other data or another reference, or of more steps than the run
        has."""
        PolicyTraining.load_state(self, checkpoint)
        written = checkpoint.state.get("reference")
        if written != self.reference.model:
            raise CheckpointError(
                f"{checkpoint.path} was trained against the reference {written}, but "
                f"dpo.model={self.config.dpo.model.path} is now {self.reference.model}; put the model back, or start "
                "anew with another dpo.output"
            )

    def learn(self) -> dict[str, float]:
        """Take an optimizer step on the samples of the current step; its metrics."""
        batch = self.data.training.batch(self.schedule[self.step], self.reference.training)
        shards = batch.split(balance(batch.tokens.tolist(), len(self.trainer)))
        stats = self.trainer.map(PreferencePolicy.update, shards).result(self.config.deadlines.update_s)[0]
        return measured(stats)

    def test(self) -> dict[str, float]:
        """Measure what the policy makes of what is held out; its metrics."""
        heldout, reference, loss = self.data.heldout, self.reference.heldout, self.config.dpo.loss
        assert heldout is not None and reference is not None
        policy = response_logprobs(self.trainer, heldout.responses, self.config.deadlines.score_s)
        first, second = heldout.rows.unbind(1)
        batch, kl = heldout.batch(range(len(heldout)), reference), kto_kl(policy[second], reference[second])
        rows = first if heldout.desirable is not None else torch.cat([first, second])
        _, sums = judged(loss, batch, policy[rows], kl)
        self.quality = PreferenceNumbers.of(sums, loss, kl)
        return heldout_metrics(self.quality)

    def told(self) -> str:
        """The quality, for the user."""
        margin = "" if self.quality.margin is None else f", margin {self.quality.margin:.3f}"
        return f"loss {self.quality.loss:.4f}, accuracy {self.quality.accuracy:.1%}{margin}"


def heldout_metrics(numbers: PreferenceNumbers) -> dict[str, float]:
    """By the names of `orchestrator.metrics`: those of a step, as `heldout_…`."""
    return {key.replace("/", "/heldout_"): value for key, value in measured(numbers).items()}
