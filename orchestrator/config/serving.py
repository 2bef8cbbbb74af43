"""Serving the policy over HTTP: the section `serving`, and what `tetrarch serve` and `tetrarch best-of-n` read."""

from __future__ import annotations

from pydantic import Field, SecretStr

from cluster.role_table import ENGINES
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun, scorers_of
from orchestrator.config.schema import section_key
from roles.config.models import FrozenRole
from roles.config.rewards import ModelReward, OneReward, RewardConfig
from roles.config.section import Section


class ServingConfig(Section):
    """Who may ask for what, and where."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen at; `0.0.0.0`: all of this machine."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen at; 0: a free one, which is printed."""
    api_key: SecretStr | None = None
    """Requests must have the header `Authorization: Bearer KEY`; null: anybody who reaches the port may ask."""
    model_name: str = Field(default="policy", min_length=1)
    """Name of the policy in the OpenAI-compatible routes."""
    responses: int = Field(default=4, ge=1)
    """Responses to a prompt (the N of best-of-N) where a request does not say it, and of `tetrarch best-of-n`."""
    max_responses: int = Field(default=64, ge=1)
    """Most responses that one request may ask for."""
    max_requests: int = Field(default=256, ge=1)
    """Most requests that are answered at the same time; one more is refused with status 503."""
    max_body_kib: int = Field(default=1024, ge=1)
    """Largest body of a request, in KiB."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds in which a request must have been answered."""
    stall_s: float = Field(default=60.0, gt=0)
    """Seconds in which an engine must have worked for a moment on its requests; one that takes longer hangs, and is
    started again."""
    reload: bool = True
    """Go over to the weights in `run_dir/actor` when a run writes new ones there."""


class ServingRun(EvaluationRun):
    """What `tetrarch serve` and `tetrarch best-of-n` read: the policy, and what scores its responses."""

    serving: ServingConfig = ServingConfig()
    """The policy over HTTP, and best-of-N."""

    @property
    def model_roles(self) -> tuple[str, ...]:
        return (ENGINES, *self.reward_models)


class RewardServingRun(BaseConfig):
    """What `tetrarch serve --reward` reads."""

    reward: RewardConfig
    """What scores the responses."""
    serving: ServingConfig = ServingConfig()
    """Who may ask, and where."""

    @property
    def scorers(self) -> dict[str, OneReward]:
        """Scorers by role, as in an evaluation."""
        return scorers_of(self.reward)

    @property
    def reward_models(self) -> dict[str, ModelReward]:
        """The scorers that are models, by role."""
        return {role: scorer for role, scorer in self.scorers.items() if isinstance(scorer, ModelReward)}

    @property
    def model_roles(self) -> tuple[str, ...]:
        return tuple(self.reward_models)

    @property
    def sharded(self) -> dict[str, FrozenRole]:
        """Key path → section of every reward model."""
        return {section_key(role): scorer for role, scorer in self.reward_models.items()}
