"""Measuring the policy on held-out prompts: the section `evaluation`."""

from __future__ import annotations

from pydantic import Field

from roles.config.rewards import FunctionReward
from roles.config.section import Section


class EvaluationConfig(Section):
    """What is measured on the held-out prompts before, after and every so many steps."""

    every: int = Field(default=0, ge=0)
    """PPO steps between evaluations; 0: only before the first and after the last."""
    prompts: int = Field(default=128, ge=1)
    """Of the held-out ones, from the first."""
    judge: FunctionReward | None = None
    """A gold scorer with the reward function's signature; null: the proxy score alone."""
    samples: int = Field(default=3, ge=0)
    """Responses shown side by side."""
