"""Advantage estimators: the section `ppo.advantage`, one class per type."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class Gae(Section):
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438)."""

    type: Literal["gae"] = "gae"
    """Generalised advantage estimation."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token; 1 as in the N+ details."""
    lambda_: float = Field(default=0.95, ge=0, le=1, alias="lambda")
    """Weight of longer returns: 0 trusts the critic, 1 the sampled return."""
    critic_lambda: float | None = Field(default=None, ge=0, le=1)
    """Of the critic's targets, where it differs (VAPO, arXiv 2504.05118, has 1); null is `lambda`."""


NEEDS_CRITIC = ("gae",)
"""Types of advantages that are estimated with values; all others start no critic."""


class ReinforcePlusPlus(Section):
    """REINFORCE++ (arXiv 2501.03262): the rewards from a token on; no critic."""

    type: Literal["reinforce++"]
    """REINFORCE++."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""


class ReinforcePlusPlusBaseline(Section):
    """REINFORCE++-baseline (arXiv 2501.03262): less the mean of the prompt's responses; no critic."""

    type: Literal["reinforce++-baseline"]
    """REINFORCE++ with the group's mean as its baseline."""


class Rloo(Section):
    """REINFORCE leave-one-out (arXiv 2402.14740): less the mean of the prompt's other responses; no critic."""

    type: Literal["rloo"]
    """Leave-one-out."""


class ReMax(Section):
    """ReMax (arXiv 2310.10505): less the score of the greedy response, one more for each prompt; no critic."""

    type: Literal["remax"]
    """Less the greedy response's score."""


class Grpo(Section):
    """Group-relative (arXiv 2402.03300): in standard deviations of the prompt's responses; no critic."""

    type: Literal["grpo"]
    """Group-relative."""


class DrGrpo(Section):
    """GRPO done right (arXiv 2503.20783): without the division; with `ppo.policy.mean: constant`. No critic."""

    type: Literal["dr_grpo"]
    """Group-relative, undivided."""


AdvantageConfig = Annotated[
    Gae | ReinforcePlusPlus | ReinforcePlusPlusBaseline | Rloo | ReMax | Grpo | DrGrpo, Field(discriminator="type")
]
