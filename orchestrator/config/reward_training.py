"""Training a reward model: the section `reward_training`, and what `tetrarch reward` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cluster.role_table import ENGINES, REWARD
from orchestrator.config.base import BaseConfig
from orchestrator.config.data import PromptsConfig, RecordsConfig
from orchestrator.config.sampling import SamplingConfig
from roles.config.environment import FunctionEnvironment
from roles.config.models import ActorConfig, FrozenRole, ModelConfig, OptimizerConfig, Pooling, TrainedRole
from roles.config.rewards import FunctionReward
from roles.config.rollout import RolloutConfig
from roles.config.section import PathText, Section


class PairDataset(Section):
    """Preference pairs from a data set."""

    type: Literal["dataset"]
    """The pairs exist."""
    dataset: RecordsConfig
    """The data set of the pairs."""


class SampledPairs(Section):
    """The policy's own responses to the training prompts, ranked by a judge (synthetic gold, arXiv 2210.10760)."""

    type: Literal["sampled"]
    """The pairs are made; the sections `actor`, `prompts` and `rollout` say how responses are sampled."""
    judge: FunctionReward
    """The function that ranks the responses."""
    responses_per_prompt: int = Field(default=4, ge=2)
    """Responses to each prompt; every two of them that the judge scores differently are compared."""
    prompts: int | None = Field(default=None, ge=1)
    """Number of training prompts to use; null: all."""


PairsConfig = Annotated[PairDataset | SampledPairs, Field(discriminator="type")]


class RewardTrainingConfig(Section):
    """A reward model from preference pairs, trained with the Bradley–Terry loss (arXiv 2203.02155, equation 1)."""

    output: PathText
    """Folder of the trained model; set `reward.model.path` to it."""
    model: ModelConfig
    """The language model that the reward model starts from."""
    pairs: PairsConfig
    """The comparisons that it learns from."""
    heldout_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the groups (all compared responses to one prompt) that is not trained on, to measure the accuracy."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    groups_per_step: int = Field(default=16, ge=1)
    """Groups (all compared responses to one prompt) per optimizer step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5)
    """AdamW."""
    freeze_backbone: bool = False
    """Train only the head: fast, and all that a few hundred comparisons can teach a small model."""
    pooling: Pooling = "last"
    """Where the score of a response is read: the head's output at the last token, or its mean over all tokens (kept as
    `score_pooling` in the folder's config.json). A critic that starts from a `mean` model values a state by the mean so
    far."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one packed forward pass on one rank."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest prompt with response, tokens; longer pairs are left out (and counted)."""
    minimum_accuracy: float = Field(default=0.0, ge=0, lt=1)
    """The command fails unless the whole 95 % interval of the held-out pair accuracy is above this; 0.5 is chance."""

    @property
    def section(self) -> TrainedRole:
        """The reward model as a trained role."""
        return TrainedRole(model=self.model, optimizer=self.optimizer, micro_batch_tokens=self.micro_batch_tokens)


QUALITY = "reward_quality.json"
"""File in every folder that `tetrarch reward` writes."""
COMPARISONS = "comparisons.safetensors"
"""File in `run_dir` in which sampled comparisons are kept."""


class RewardTrainingRun(BaseConfig):
    """What `tetrarch reward` reads: with pairs of a data set, no section of a policy."""

    folder_key: ClassVar[str] = "reward_training.output"

    reward_training: RewardTrainingConfig
    """A reward model to train: at least its output, model and pairs."""
    prompts: PromptsConfig | None = None
    """What the policy is asked; only with sampled pairs."""
    actor: ActorConfig | None = None
    """The policy; only with sampled pairs."""
    rollout: RolloutConfig | None = None
    """How the policy is sampled; only with sampled pairs."""
    environment: FunctionEnvironment | None = None
    """Must be null with sampled pairs: responses are compared, not conversations."""

    @classmethod
    def own(cls, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The keys that the command reads: without the policy's sections if the pairs exist."""
        own = super().own(data)
        match own:
            case {"reward_training": {"pairs": {"type": "sampled"}}}:
                return own
        return {key: own[key] for key in own if key in BaseConfig.model_fields or key == "reward_training"}

    @property
    def model_roles(self) -> tuple[str, ...]:
        return (REWARD, ENGINES) if isinstance(self.reward_training.pairs, SampledPairs) else (REWARD,)

    @property
    def sharded(self) -> dict[str, FrozenRole]:
        """Key path → section of the reward model; the policy is sampled, and has engines only."""
        return {"reward_training": self.reward_training.section}

    @property
    def policy(self) -> SamplingConfig | None:
        """The sections with which the responses are sampled; None if the pairs exist."""
        if not isinstance(self.reward_training.pairs, SampledPairs):
            return None
        return SamplingConfig.model_validate({name: getattr(self, name) for name in SamplingConfig.model_fields})
