"""The whole configuration of a run. A YAML file and `key.path=value` overrides flow in, a frozen RunConfig flows out.

Imports neither torch, ray, vllm nor deepspeed, so that a file can be checked on a laptop.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any, Literal

from pydantic import Field

from cluster.config import Deadlines, LocalPlacement, PlacementConfig
from cluster.role_table import ACTOR, CRITIC, ENGINES, REFERENCE, REWARD, ROLES, gpu_roles
from orchestrator.config.data import PromptsConfig
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.reward_training import RewardTrainingConfig
from roles.config.environment import FunctionEnvironment
from roles.config.models import ActorConfig, CriticConfig, FrozenRole, ModelConfig, ReferenceConfig
from roles.config.rewards import EnsembleReward, EnvironmentReward, ModelReward, OneReward, RewardConfig
from roles.config.rollout import RolloutConfig
from roles.config.section import Dtype, Section


class CheckpointConfig(Section):
    """State that a run resumes from."""

    every: int = Field(default=0, ge=0)
    """PPO steps between checkpoints; 0: `minutes` alone says when. There is one after the last step always."""
    minutes: float | None = Field(default=None, ge=0)
    """After a step that ends so many minutes or more after the last checkpoint there is one; 0: never. null: 15 where
    `every` is 0, else 0."""
    keep: int = Field(default=2, ge=1)
    """Newest whole ones that stay."""

    @property
    def interval_s(self) -> float:
        """Seconds between checkpoints; infinite where none is due by time."""
        minutes = (0.0 if self.every else 15.0) if self.minutes is None else self.minutes
        return 60.0 * minutes or math.inf


class ReportConfig(Section):
    """What a run writes beside `metrics.jsonl`."""

    tensorboard: bool = True
    """TensorBoard files in `run_dir`."""
    html: bool = True
    """One self-contained `report.html`."""


class CanaryConfig(Section):
    """Whether the engines sample from the trainer's weights: in every batch, before anything is trained on it, their
    log-probabilities of the sampled tokens are compared with the actor's. Where they differ by too much, the run ends
    with exit code 1 and a checkpoint. With `rollout.top_k` only large differences show."""

    enabled: bool = True
    """false: nothing is compared (`engine/logprob_gap_mean` is reported all the same)."""
    limit: float | None = Field(default=None, gt=0)
    """Largest mean difference, in nats per token. null, in float32: 1e-4. null, where actor or engines are in bfloat16:
    0.2 for the weights that the engines load from the folder, then `growth` times what those had, at least 0.01. Both
    are divided by a temperature below 1."""
    growth: float = Field(default=5.0, gt=1)
    """Of the difference between the weights from the folder and pushed ones."""


class RunConfig(Section):
    """One run."""

    run_dir: str = Field(min_length=1)
    """Everything the run leaves behind goes here."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Of prompt order, sampling, mini-batches and new heads."""
    steps: int = Field(ge=1)
    """PPO steps."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where all models run."""
    dtype: Dtype = "float32"
    """Of the models' weights and activations; losses, values and log-probabilities are float32 always."""
    model_cache: str = Field(default="runs/models", min_length=1)
    """Where converted models (GGUF, cut layers) are kept."""
    prompts: PromptsConfig
    """What the policy is asked."""
    actor: ActorConfig
    """The policy."""
    critic: CriticConfig = CriticConfig()
    """The value model."""
    reference: ReferenceConfig = ReferenceConfig()
    """The frozen policy."""
    reward: RewardConfig
    """What is maximised."""
    environment: FunctionEnvironment | None = None
    """What the policy converses with; null: a sample is one response to a prompt."""
    rollout: RolloutConfig
    """How the policy is sampled."""
    ppo: PpoConfig = PpoConfig()
    """How it learns."""
    canary: CanaryConfig = CanaryConfig()
    """Whether the engines sample from the trainer's weights."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured on held-out prompts."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """State that a run resumes from."""
    report: ReportConfig = ReportConfig()
    """What a run writes beside its metrics."""
    reward_training: RewardTrainingConfig | None = None
    """For `tetrarch reward`; the other commands do not read it."""
    placement: PlacementConfig = LocalPlacement()
    """Which group sits where."""
    deadlines: Deadlines = Deadlines()
    """How long is waited for whom."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        """The roles of a training run that hold a model: the engines, then all but the rewards, then these."""
        idle = {CRITIC: not self.ppo.uses_critic, REFERENCE: self.reference.share_actor, REWARD: True}
        rewards = (role for role, scorer in self.scorers.items() if isinstance(scorer, ModelReward))
        others = (role for role in gpu_roles() if not idle.get(role, self.section(role) is None))
        return (ENGINES, *others, *rewards)

    @property
    def reference_role(self) -> str:
        """On whose ranks the reference lives."""
        return ACTOR if self.reference.share_actor else REFERENCE

    @property
    def scorers(self) -> dict[str, OneReward]:
        """By role: `reward`, or `reward.NAME` of each member of an ensemble; none where the environment says it all."""
        if isinstance(self.reward, EnvironmentReward):
            return {}
        if isinstance(self.reward, EnsembleReward):
            return {f"reward.{name}": member for name, member in self.reward.members.items()}
        return {REWARD: self.reward}

    def section(self, role: str) -> Any:
        """What is said about a role; None where that means that there is no such role."""
        return self.scorers[role] if role in self.scorers else attrgetter(ROLES[role].section)(self)

    def model_of(self, role: str) -> ModelConfig | None:
        """The model that a role starts from; None where nothing says it. A frozen role without one has the actor's."""
        if role == CRITIC:
            return self.critic_model
        section = self.section(role)
        return section.model or self.actor.model if isinstance(section, FrozenRole) else None

    @property
    def longest_response(self) -> int:
        """Most tokens that the policy generates for one sample."""
        if self.environment is None:
            return self.rollout.max_response_tokens
        return min(self.environment.max_turns * self.rollout.max_response_tokens, self.environment.max_tokens - 1)

    @property
    def longest_sample(self) -> int:
        """Most tokens of one sample, prompt included."""
        if self.environment is None:
            return self.prompts.max_tokens + self.rollout.max_response_tokens
        return self.environment.max_tokens

    @property
    def critic_model(self) -> ModelConfig | None:
        """What the critic starts from; None where nothing says it."""
        if self.critic.model is not None:
            return self.critic.model
        if self.critic.initialise_from == "policy":
            return self.actor.model
        return self.reward.model if isinstance(self.reward, ModelReward) else None

    @property
    def samples_per_step(self) -> int:
        """Rows of one PPO batch."""
        return self.rollout.prompts_per_step * self.rollout.responses_per_prompt
