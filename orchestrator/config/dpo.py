"""Learning preferences without a reward model: the section `dpo`, and what `tetrarch dpo` reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cluster.role_table import ACTOR
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import RecordsConfig
from orchestrator.config.policy_training import PolicyTrainingConfig
from roles.config.models import OptimizerConfig
from roles.config.preference_losses import PreferenceLossConfig, SigmoidLoss


class DpoConfig(PolicyTrainingConfig):
    """A policy from preferences, trained with a loss of the DPO family on the ranks of the actor. The reference is the
    model that it starts from."""

    key: ClassVar[str] = "dpo"

    data: RecordsConfig
    """Comparisons; for the loss `kto` labelled responses."""
    loss: PreferenceLossConfig = SigmoidLoss(type="sigmoid")
    """What is minimised, as the mean over the pairs or labelled responses of an optimizer step."""
    samples_per_step: int = Field(default=64, ge=1)
    """Pairs, or labelled responses, per optimizer step, over all ranks; the last step of a pass has what is left."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-7)
    """AdamW."""


class DpoRun(BaseConfig):
    """What `tetrarch dpo` reads."""

    folder_key: ClassVar[str] = "dpo.output"

    dpo: DpoConfig
    """A policy that learns preferences: at least its output, model and data."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        return (ACTOR,)


DPO_QUALITY = "dpo_quality.json"
"""File in every folder that `tetrarch dpo` writes."""
