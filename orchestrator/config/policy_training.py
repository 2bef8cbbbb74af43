"""What the sections of the trainings have in common that make a policy of a data set: `sft` and `dpo`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.config.data import RecordsConfig
from roles.config.models import ModelConfig, OptimizerConfig, TrainedRole
from roles.config.section import PathText


class PolicyTrainingConfig(TrainedRole):
    """A policy from a data set that is read before the start, trained on the ranks of the actor."""

    key: ClassVar[str]
    """The section's key."""

    output: PathText
    """Folder of the trained model, from which the next stages start: set `actor.model.path` to it."""
    model: ModelConfig
    """The language model to start from."""
    data: RecordsConfig
    """What it learns from."""
    heldout: RecordsConfig | None = None
    """Rows of the same kind that are never trained on; null: `heldout_fraction` of `data`."""
    heldout_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of `data` that is held out if `heldout` is null; 0: nothing is."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data."""
    samples_per_step: int = Field(default=64, ge=1)
    """Samples per optimizer step, over all ranks; the last step of a pass has what is left."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """AdamW."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest sample, prompt and response, in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer sample ends the command, is left out (counted), or loses its last tokens (counted)."""
    chat_template: PathText | None = None
    """A Jinja file in place of the tokenizer's chat template, or for a tokenizer without one; the trained folder keeps
    it. null: the tokenizer's own."""
    evaluate_every: int = Field(default=0, ge=0)
    """Optimizer steps between evaluations on what is held out; 0: at the end of each pass."""
