"""Training a reward model: the section `reward_training`, and what `tetrarch reward` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.role_table import ENGINES, REWARD
from orchestrator.config.base import RUN, BaseConfig
from orchestrator.config.data import PromptsConfig, RecordsConfig
from orchestrator.config.sampling import SamplingConfig
from roles.config.environment import FunctionEnvironment
from roles.config.models import ActorConfig, FrozenRole, ModelConfig, OptimizerConfig, Pooling, TrainedRole
from roles.config.rewards import FunctionReward
from roles.config.rollout import RolloutConfig
from roles.config.section import PathText, Section
from roles.seeds import short_seed


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


class RewardEnsembleConfig(Section):
    """Several reward models from the same pairs, trained one after another by one command; each is a member of `reward:
    {type: ensemble}`."""

    members: int = Field(ge=2)
    """Number of models. Member `i` is written to `OUTPUT/member-i`, and its run to `OUTPUT/member-i-run`."""
    vary: Literal["seed", "fold"] = "seed"
    """How they differ. `seed`: in their new heads and the order of the groups; all hold out the same groups. `fold`: in
    the groups that they hold out, each beginning 1/members of all groups further on; if `heldout_fraction` is
    1/members, they are the folds of a cross-validation."""
    member: int | None = Field(default=None, ge=1)
    """Train this member alone, into `output` itself (on another machine, say); null: all."""

    @model_validator(mode="after")
    def _is_a_member(self) -> Self:
        if self.member is not None and self.member > self.members:
            raise ValueError(f"member={self.member} is more than members={self.members}")
        return self


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
    pooling: Pooling | None = None
    """Where the score of a response is read: the head's output at the last token, or its mean over all tokens (kept as
    `score_pooling` in the folder's config.json). A critic that starts from a `mean` model values a state by the mean so
    far. null: as the reward model in `model` says; `last` for a language model, which gets a new head."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one packed forward pass on one rank."""
    fused_kernels: bool = True
    """As in `actor.fused_kernels`."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest prompt with response, tokens; longer pairs are left out (and counted)."""
    minimum_accuracy: float = Field(default=0.0, ge=0, lt=1)
    """The command fails unless the whole 95 % interval of the held-out pair accuracy is above this; 0.5 is chance."""
    ensemble: RewardEnsembleConfig | None = None
    """Train several models; null: one."""

    @property
    def heldout_from(self) -> float:
        """Share of the shuffled groups that come before those which are held out."""
        ensemble = self.ensemble
        if ensemble is None or ensemble.vary != "fold" or ensemble.member is None:
            return 0.0
        return (ensemble.member - 1) / ensemble.members

    @property
    def section(self) -> TrainedRole:
        """The reward model as a trained role."""
        return TrainedRole(
            model=self.model,
            optimizer=self.optimizer,
            micro_batch_tokens=self.micro_batch_tokens,
            fused_kernels=self.fused_kernels,
        )


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
    def runs(self) -> list[Self]:
        """This run; of an ensemble one run for each member that is trained."""
        training, ensemble = self.reward_training, self.reward_training.ensemble
        if ensemble is None or ensemble.member is not None:
            return [self]
        found = []
        for member in range(1, ensemble.members + 1):
            own = {"member": member}
            output = f"{Path(training.output) / f'member-{member}'}"
            changed = {"output": output, "ensemble": ensemble.model_copy(update=own)}
            training_of_it = training.model_copy(update=changed)
            found.append(self.model_copy(update={"run_dir": f"{output}{RUN}", "reward_training": training_of_it}))
        return found

    @property
    def training_seed(self) -> int:
        """Seed of the new head and of the order of the groups."""
        ensemble = self.reward_training.ensemble
        if ensemble is None or ensemble.vary != "seed" or ensemble.member in (None, 1):
            return self.seed
        return short_seed(self.seed, "member", ensemble.member)

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
