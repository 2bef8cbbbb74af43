"""Supervised fine-tuning: the section `sft`, and what `tetrarch sft` reads."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cluster.role_table import ACTOR
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import RecordsConfig
from roles.config.models import ModelConfig, OptimizerConfig, TrainedRole
from roles.config.section import PathText


class SftConfig(TrainedRole):
    """A policy from demonstrations, trained with the cross-entropy of the responses, on the ranks of the actor."""

    output: PathText
    """Folder of the trained model, from which the next stages start: set `actor.model.path` to it."""
    model: ModelConfig
    """The language model to start from."""
    data: RecordsConfig
    """The demonstrations."""
    heldout: RecordsConfig | None = None
    """Demonstrations that are never trained on; null: `heldout_fraction` of `data`."""
    heldout_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of `data` that is held out if `heldout` is null; 0: nothing is."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the demonstrations."""
    samples_per_step: int = Field(default=64, ge=1)
    """Demonstrations per optimizer step, over all ranks; the last step of a pass has what is left."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """AdamW."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest sample, prompt and response, in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer sample ends the command, is left out (counted), or loses its last tokens (counted)."""
    train_on_prompt: bool = False
    """Train on all tokens but the first, not only on responses."""
    chat_template: PathText | None = None
    """A Jinja file in place of the tokenizer's chat template, or for a tokenizer without one; the trained folder keeps
    it. null: the tokenizer's own."""
    evaluate_every: int = Field(default=0, ge=0)
    """Optimizer steps between evaluations on what is held out; 0: at the end of each pass."""


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
