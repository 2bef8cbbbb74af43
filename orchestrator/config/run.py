"""What the commands `train`, `plan` and `submit` read: the whole configuration of a PPO run."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cluster.role_table import CRITIC, ENGINES, LABELLER, REFERENCE, REWARD, ROLES, gpu_roles
from orchestrator.config.alerts import AlertsConfig
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.retraining import RetrainingConfig
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
    alerts: AlertsConfig | None = AlertsConfig()
    """What the run warns of, goes back for, or ends for; null: nothing."""
    row_keepers: int = Field(default=0, ge=0, le=1_000)
    """Processes that keep the samples of a step in place of the driver, for steps of some 10^7 tokens and more: one CPU
    each, on the nodes with most that are free. 0: the driver keeps them."""
    retraining: RetrainingConfig | None = None
    """How the reward model goes on learning during the run; null: it is frozen."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        """The roles of a training run that hold a model: the engines, then all but the rewards, then the rewards."""
        idle = {CRITIC: not self.ppo.uses_critic, REFERENCE: self.reference.share_actor, REWARD: True, LABELLER: True}
        others = (role for role in gpu_roles() if not idle.get(role, self.section(role) is None))
        return (ENGINES, *others, *self.reward_models)

    @property
    def reward_models(self) -> dict[str, ModelReward]:
        """As in an evaluation, and the model that labels what the reward model is retrained on."""
        judge = self.section(LABELLER)
        return {**super().reward_models, **({LABELLER: judge} if isinstance(judge, ModelReward) else {})}

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

    def section(self, role: str) -> Any:
        """As in an evaluation; of a reward model that is retrained, that of a trained role."""
        if role == LABELLER:
            return self.retraining and self.retraining.judge
        section = super().section(role)
        retrained = role == REWARD and self.retraining is not None and isinstance(section, ModelReward)
        return self.retraining.trained(section) if self.retraining and retrained else section

    def critic_alone(self, step: int, warm_at: int) -> bool:
        """Whether the PPO step that follows `step` steps trains only the critic, because the reward model was
        retrained. `warm_at`: the first step in which the actor is trained."""
        retraining = self.retraining
        return self.ppo.uses_critic and retraining is not None and retraining.critic_alone(step, warm_at)

    def actor_steps(self, warm_at: int) -> int:
        """Number of PPO steps of the run that train the actor, if the first of them follows `warm_at` steps."""
        return sum(not self.critic_alone(step, warm_at) for step in range(warm_at, self.steps))

    @property
    def retraining_steps(self) -> int:
        """Most optimizer steps of all retrainings of the reward model, if the critic's warm-up takes all its steps."""
        retraining, warm_at = self.retraining, self.critic.warmup.max_steps
        if retraining is None:
            return 0
        return sum(retraining.due(step, warm_at) for step in range(self.steps)) * retraining.optimizer_steps

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
