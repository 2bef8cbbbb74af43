"""Supervised fine-tuning: the section `sft`, and what `tetrarch sft` reads."""

from __future__ import annotations

from typing import ClassVar

from cluster.role_table import ACTOR
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import RecordsConfig
from orchestrator.config.policy_training import PolicyTrainingConfig


class SftConfig(PolicyTrainingConfig):
    """A policy from demonstrations, trained with the cross-entropy of the responses, on the ranks of the actor."""

    key: ClassVar[str] = "sft"

    data: RecordsConfig
    """The demonstrations."""
    train_on_prompt: bool = False
    """Train on all tokens but the first, not only on responses."""


class SftRun(BaseConfig):
    """What `tetrarch sft` reads."""

    folder_key: ClassVar[str] = "sft.output"

    sft: SftConfig
    """A policy to fine-tune: at least its output, model and data."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        return (ACTOR,)


SFT_QUALITY = "sft_quality.json"
"""File in every folder that `tetrarch sft` writes."""
