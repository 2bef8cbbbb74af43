"""What a user may say about the losses of actor and critic.

Imports no engine; read by `orchestrator.config.ppo`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class NoCorrection(Section):
    """Trust the rollout's distribution to be the actor's."""

    type: Literal["none"] = "none"
    """No correction."""


class TruncatedImportance(Section):
    """Weight each token's policy loss by min(cap, π_old/π_rollout): truncated importance sampling."""

    type: Literal["truncated"]
    """Truncated importance sampling."""
    cap: float = Field(default=2.0, gt=1)
    """Largest weight of a token."""


class IcePop(Section):
    """Weight each token's policy loss by π_old/π_rollout, and leave out those where it is too far from 1."""

    type: Literal["icepop"]
    """IcePop (arXiv 2510.18855)."""
    low: float = Field(default=0.5, ge=0, lt=1)
    """A token below it is left out."""
    high: float = Field(default=5.0, gt=1)
    """A token above it is left out."""


class RejectedSequences(Section):
    """Leave out whole responses whose π_old/π_rollout is too far from 1, in the geometric mean over their tokens."""

    type: Literal["reject"]
    """Rejection."""
    low: float = Field(default=0.9, ge=0, lt=1)
    """A response below it is left out."""
    high: float = Field(default=1.1, gt=1)
    """A response above it is left out."""


ImportanceConfig = Annotated[
    NoCorrection | TruncatedImportance | IcePop | RejectedSequences, Field(discriminator="type")
]


LossMean = Literal["token", "sequence", "constant"]
"""Mean over all tokens of the optimizer step; or over its sequences: of their token means, or of their token sums
divided by a constant."""


class PolicyLossConfig(Section):
    """The clipped surrogate (Schulman et al., arXiv 1707.06347, equation 7), what users add to it and take for it."""

    type: Literal["clipped", "gspo", "cispo"] = "clipped"
    """`clipped`: PPO's; `gspo`: one ratio a sequence (arXiv 2507.18071; clips of some 1e-4, `mean: sequence`); `cispo`:
    the ratio as a clipped weight (arXiv 2506.13585)."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to 1 - clip … 1 + clip; 0.2 as in the paper."""
    clip_high: float | None = Field(default=None, gt=0)
    """Upper clip where it differs from `clip`; null is `clip`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Lower bound factor for negative advantages (arXiv 1912.09729, equation 5); null is off."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Factor of the entropy bonus; 0 as in the N+ details."""
    mean: LossMean = "token"
    """`token`: over all tokens of the optimizer step; `sequence`: over its sequences of their token means; `constant`:
    over its sequences of their token sums / rollout.max_response_tokens (Dr. GRPO, arXiv 2503.20783)."""
    importance: ImportanceConfig = NoCorrection()
    """What is done about the rollout's distribution differing from the actor's."""


class ValueLossConfig(Section):
    """Half the squared error to the return, clipped around the old value."""

    clip: float | None = Field(default=0.2, gt=0)
    """null is off."""
    coefficient: float = Field(default=0.1, gt=0)
    """Factor of the loss; 0.1 as in the N+ details (it matters through gradient clipping)."""
    mean: LossMean = "token"
    """As in the policy loss."""
    normalise: bool = False
    """Regress to returns in units of the mean and standard deviation of all returns of the run so far (which are saved
    with the checkpoint and the critic). For critics with a new head alone, where returns are far from 0 or from ±1."""
