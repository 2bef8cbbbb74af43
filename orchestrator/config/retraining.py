"""Retraining the reward model while PPO runs: the section `retraining`."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from orchestrator.config.labelling import QUESTION, EndpointJudge
from roles.config.models import OptimizerConfig, ScheduleConfig, TrainedRole
from roles.config.rewards import FunctionReward, ModelReward, RemoteReward
from roles.config.section import Section

RETRAINED = "reward_retrained"
"""Folder in `run_dir` with the reward model as a run leaves it. The one that it starts from may be in `reward`."""


class RetrainingConfig(Section):
    """The reward model learns again while PPO runs, from fresh responses of the policy that a gold judge compares
    (iterated online RLHF, arXiv 2204.05862). Before it learns, the policy has not moved on; after it, the critic is
    trained alone for some steps, and `ppo.score.normalise` starts anew."""

    every: int = Field(ge=1)
    """PPO steps between two retrainings; the first is after so many steps. None while the critic warms up."""
    judge: Annotated[ModelReward | FunctionReward | RemoteReward | EndpointJudge, Field(discriminator="type")]
    """Who compares the responses. A larger reward model (a role of its own, `labeller`), a function or a service gives
    each of them a score; an endpoint is asked as by `tetrarch label`, each pair in both orders, and its probabilities
    are soft labels."""
    prompts: int = Field(default=64, ge=1)
    """Training prompts to which responses are sampled each time."""
    responses_per_prompt: int = Field(default=2, ge=2)
    """Responses to each of them; every two on which the judge decides are compared."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the comparisons of one retraining."""
    groups_per_step: int = Field(default=16, ge=1)
    """Groups per optimizer step: all compared responses to one prompt, or one pair that an endpoint has compared."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, schedule=ScheduleConfig(type="constant"))
    """AdamW; its state and its schedule go on from one retraining to the next."""
    freeze_backbone: bool = False
    """Train only the head."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    pinned: int = Field(default=64, ge=2)
    """Responses, the first of the first retraining, that are scored before and after every retraining."""
    critic_steps: int = Field(default=1, ge=0)
    """PPO steps after a retraining that train only the critic, on the new scores. Without a critic there are none."""
    question: str = Field(default=QUESTION, min_length=1)
    """What an endpoint is told before a prompt and two responses."""
    minimum_mass: float = Field(default=0.1, ge=0, le=1)
    """An endpoint abstains where the tokens A and B together are less probable than this."""

    def due(self, step: int, warm_at: int | None) -> bool:
        """Whether the reward model is retrained before the PPO step that follows `step` steps, if the actor has been
        trained since step `warm_at` (None: not yet)."""
        return warm_at is not None and step > warm_at and step % self.every == 0

    def critic_alone(self, step: int, warm_at: int) -> bool:
        """Whether the step that follows `step` steps trains only the critic."""
        return step - step % self.every > warm_at and step % self.every < self.critic_steps

    @property
    def optimizer_steps(self) -> int:
        """Most optimizer steps of one retraining."""
        each = math.comb(self.responses_per_prompt, 2) if isinstance(self.judge, EndpointJudge) else 1
        return self.epochs * math.ceil(self.prompts * each / self.groups_per_step)

    def trained(self, reward: ModelReward) -> TrainedRole:
        """The reward model as a trained role."""
        return TrainedRole(
            model=reward.model,
            zero=reward.zero,
            micro_batch_tokens=reward.micro_batch_tokens,
            fused_kernels=reward.fused_kernels,
            optimizer=self.optimizer,
            gradient_checkpointing=self.gradient_checkpointing,
        )
