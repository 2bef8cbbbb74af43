"""Advantage estimators: the section `ppo.advantage`, one class per type, with what a run must know of it.

The formulas are in `orchestrator.ppo.advantages`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from roles.config.section import Section


class Estimator(Section):
    """What a run must know about an estimator besides its formula; each class sets the facts that are true."""

    needs_critic: ClassVar[bool] = False
    """Whether values are needed: a critic is trained, and the function also gets `values` and `bootstrap`."""
    compares_responses: ClassVar[bool] = False
    """Whether the responses to one prompt are compared: there must be several, and the function also gets `groups`."""
    divides_by_spread: ClassVar[bool] = False
    """Whether what is compared is divided by the standard deviation of the prompt's responses."""
    needs_greedy: ClassVar[bool] = False
    """Whether the score of the greedy response to the same prompt is the baseline: that response is generated too,
    and the function also gets `baselines`."""
    whitens: ClassVar[bool] = False
    """Whether advantages are whitened afterwards, unless `ppo.whiten_advantages` says otherwise."""


class Gae(Estimator):
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438)."""

    needs_critic: ClassVar = True
    whitens: ClassVar = True

    type: Literal["gae"] = "gae"
    """Generalised advantage estimation."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token; 1 as in the N+ details."""
    lambda_: float = Field(default=0.95, ge=0, le=1, alias="lambda")
    """Weight of longer returns: 0 trusts the critic, 1 the sampled return."""
    critic_lambda: float | None = Field(default=None, ge=0, le=1)
    """λ of the critic's targets (VAPO, arXiv 2504.05118, uses 1); null: the same as `lambda`."""


class ReinforcePlusPlus(Estimator):
    """REINFORCE++ (arXiv 2501.03262): the rewards from a token on; no critic."""

    whitens: ClassVar = True

    type: Literal["reinforce++"]
    """REINFORCE++."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""


class ReinforcePlusPlusBaseline(Estimator):
    """REINFORCE++-baseline (arXiv 2501.03262): less the mean of the prompt's responses; no critic."""

    compares_responses: ClassVar = True
    whitens: ClassVar = True

    type: Literal["reinforce++-baseline"]
    """REINFORCE++ with the group's mean as its baseline."""


class Rloo(Estimator):
    """REINFORCE leave-one-out (arXiv 2402.14740): less the mean of the prompt's other responses; no critic."""

    compares_responses: ClassVar = True

    type: Literal["rloo"]
    """Leave-one-out."""


class ReMax(Estimator):
    """ReMax (arXiv 2310.10505): less the score of the greedy response, one more for each prompt; no critic."""

    needs_greedy: ClassVar = True

    type: Literal["remax"]
    """Less the greedy response's score."""


class Grpo(Estimator):
    """Group-relative (arXiv 2402.03300): in standard deviations of the prompt's responses; no critic."""

    compares_responses: ClassVar = True
    divides_by_spread: ClassVar = True

    type: Literal["grpo"]
    """Group-relative."""


class DrGrpo(Estimator):
    """GRPO done right (arXiv 2503.20783): without the division; with `ppo.policy.mean: constant`. No critic."""

    compares_responses: ClassVar = True

    type: Literal["dr_grpo"]
    """Group-relative, undivided."""


AdvantageConfig = Annotated[
    Gae | ReinforcePlusPlus | ReinforcePlusPlusBaseline | Rloo | ReMax | Grpo | DrGrpo, Field(discriminator="type")
]

VARIANTS: dict[str, type[Estimator]] = {
    get_args(variant.model_fields["type"].annotation)[0]: variant for variant in get_args(get_args(AdvantageConfig)[0])
}
"""`type` → variant."""

CRITIC_FREE = frozenset(kind for kind, variant in VARIANTS.items() if not variant.needs_critic)
"""Types that need no critic."""
