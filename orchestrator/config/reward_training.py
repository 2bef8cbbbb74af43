"""Training a reward model: the section `reward_training`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.data import DatasetConfig
from roles.config.models import ModelConfig, OptimizerConfig, Pooling
from roles.config.rewards import FunctionReward
from roles.config.section import Section


class PairDataset(Section):
    """Preference pairs from a data set with columns `prompt` (or `messages`), `chosen`, `rejected`."""

    type: Literal["dataset"]
    """Pairs that exist."""
    dataset: DatasetConfig
    """Where they are."""


class SampledPairs(Section):
    """The policy's own responses to the training prompts, ranked by a judge (synthetic gold, arXiv 2210.10760)."""

    type: Literal["sampled"]
    """Pairs that are made."""
    judge: FunctionReward
    """Ranks the responses."""
    responses_per_prompt: int = Field(default=4, ge=2)
    """Every two of them that the judge does not call equal are compared."""
    prompts: int | None = Field(default=None, ge=1)
    """Training prompts to use; null is all."""


PairsConfig = Annotated[PairDataset | SampledPairs, Field(discriminator="type")]


class RewardTrainingConfig(Section):
    """`tetrarch reward`: a reward model from preference pairs with the Bradley–Terry loss."""

    output: str = Field(min_length=1)
    """Folder of the trained model; point `reward.model.path` at it."""
    model: ModelConfig
    """Backbone."""
    pairs: PairsConfig
    """What it learns from."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the groups (a prompt's compared responses) that is not trained on, for the accuracy."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    groups_per_step: int = Field(default=16, ge=1)
    """Groups (a prompt's compared responses) of one optimizer step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """AdamW."""
    freeze_backbone: bool = False
    """Train the head alone: fast, and all that a few hundred comparisons can teach a small backbone."""
    pooling: Pooling = "last"
    """What a response's number is: the head's at the last token, or its mean over all tokens (`score_pooling` in the
    folder's config.json). A critic that starts from a `mean` model values a state by the mean so far."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one packed forward pass on one rank."""
    max_tokens: int = Field(default=1024, ge=2)
    """Prompt + response; longer pairs are left out (counted)."""
    minimum_accuracy: float = Field(default=0.0, ge=0, lt=1)
    """The command fails unless the held-out pair accuracy is above this with its whole 95 % interval; 0.5 is chance."""
