"""What the commands `train`, `plan` and `submit` read: the whole configuration of a PPO run."""

from __future__ import annotations

from pydantic import Field

from cluster.role_table import CRITIC, ENGINES, REFERENCE, REWARD, ROLES, gpu_roles
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.schema import section_key
from roles.config.models import CriticConfig, FrozenRole, ModelConfig
from roles.config.rewards import ModelReward


class RunConfig(EvaluationRun):
    """One PPO run."""

    steps: int = Field(ge=1)
    """Number of PPO steps of the whole run."""
    critic: CriticConfig = CriticConfig()
    """The value model."""
    ppo: PpoConfig = PpoConfig()
    """How the policy learns."""
    canary: CanaryConfig = CanaryConfig()
    """Whether the engines sample from the trainer's weights."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        """The roles of a training run that hold a model: the engines, then all but the rewards, then the rewards."""
        idle = {CRITIC: not self.ppo.uses_critic, REFERENCE: self.reference.share_actor, REWARD: True}
        others = (role for role in gpu_roles() if not idle.get(role, self.section(role) is None))
        return (ENGINES, *others, *self.reward_models)

    @property
    def other_frozen_roles(self) -> tuple[str, ...]:
        """The frozen roles of this run other than the reference and the rewards."""
        others = [role for role in ROLES.values() if role.frozen and role.name not in (REFERENCE, REWARD)]
        return tuple(role.name for role in others if role.name in self.model_roles)

    @property
    def sharded(self) -> dict[str, FrozenRole]:
        """Key path → section of every model but the engines', with the model from which it starts."""
        roles = [role for role in self.model_roles if role != ENGINES]
        return {
            section_key(role): self.section(role).model_copy(update={"model": self.model_of(role)}) for role in roles
        }

    def model_of(self, role: str) -> ModelConfig | None:
        """As in an evaluation; for the critic None if no key says it."""
        return self.critic_model if role == CRITIC else super().model_of(role)

    @property
    def critic_model(self) -> ModelConfig | None:
        """The model that the critic starts from; None if no key says it."""
        if self.critic.model is not None:
            return self.critic.model
        if self.critic.initialise_from == "policy":
            return self.actor.model
        return self.reward.model if isinstance(self.reward, ModelReward) else None

    @property
    def samples_per_step(self) -> int:
        """Number of samples of one PPO step."""
        return self.rollout.prompts_per_step * self.rollout.responses_per_prompt
