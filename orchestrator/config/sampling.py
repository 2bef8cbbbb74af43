"""What sampling from the policy needs: prompts, the policy, its engines, and what it converses with."""

from __future__ import annotations

from orchestrator.config.base import BaseConfig
from orchestrator.config.data import PromptsConfig
from roles.config.environment import FunctionEnvironment
from roles.config.models import ActorConfig
from roles.config.rollout import RolloutConfig


class SamplingConfig(BaseConfig):
    """The keys of every command that samples from the policy."""

    prompts: PromptsConfig
    """What the policy is asked."""
    actor: ActorConfig
    """The policy."""
    rollout: RolloutConfig
    """How the policy is sampled."""
    environment: FunctionEnvironment | None = None
    """What the policy converses with; null: a sample is one response to a prompt."""

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
