"""The losses of actor and critic: the sections `ppo.policy` and `ppo.value`. Imports no engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Section


class NoCorrection(Section):
    """Treat the rollout's distribution as the actor's."""

    type: Literal["none"] = "none"
    """No correction."""


class TruncatedImportance(Section):
    """Weight each token's policy loss by min(cap, π_old/π_rollout): truncated importance sampling."""

    type: Literal["truncated"]
    """Truncated importance sampling."""
    cap: float = Field(default=2.0, gt=1)
    """Largest weight of a token."""


class IcePop(Section):
    """Weight each token's policy loss by π_old/π_rollout, and leave out tokens whose weight is too far from 1."""

    type: Literal["icepop"]
    """IcePop (arXiv 2510.18855)."""
    low: float = Field(default=0.5, ge=0, lt=1)
    """A token with a smaller weight is left out."""
    high: float = Field(default=5.0, gt=1)
    """A token with a larger weight is left out."""


class RejectedSequences(Section):
    """Leave out whole responses whose π_old/π_rollout is too far from 1, in the geometric mean over their tokens."""

    type: Literal["reject"]
    """Rejection."""
    low: float = Field(default=0.9, ge=0, lt=1)
    """A response with a smaller mean is left out."""
    high: float = Field(default=1.1, gt=1)
    """A response with a larger mean is left out."""


ImportanceConfig = Annotated[
    NoCorrection | TruncatedImportance | IcePop | RejectedSequences, Field(discriminator="type")
]


LossMean = Literal["token", "sequence", "constant"]
"""`token`: the mean over all tokens of the optimizer step. The other two are means over its sequences: of each
sequence's token mean, or of its token sum divided by a constant."""


class PolicyLossConfig(Section):
    """The clipped surrogate (Schulman et al., arXiv 1707.06347, equation 7), its additions and its alternatives."""

    type: Literal["clipped", "gspo", "cispo"] = "clipped"
    """`clipped`: PPO's. `gspo`: one ratio per sequence (arXiv 2507.18071, which clips at about 1e-4 and uses
    `mean: sequence`). `cispo`: the ratio as a clipped weight (arXiv 2506.13585)."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped to 1 - clip … 1 + clip; 0.2 as in the paper."""
    clip_high: float | None = Field(default=None, gt=0)
    """The ratio is clipped to at most 1 + clip_high; null: `clip`."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss for negative advantages, as a factor of the advantage (arXiv 1912.09729, equation 5); null:
    no bound."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Factor of the entropy bonus; 0 as in the N+ details."""
    mean: LossMean = "token"
    """`token`: the mean over all tokens of the optimizer step. `sequence`: the mean over its sequences of their token
    means. `constant`: the mean over its sequences of their token sums divided by `rollout.max_response_tokens` (Dr.
    GRPO, arXiv 2503.20783)."""
    importance: ImportanceConfig = NoCorrection()
    """Correction for the difference between the rollout's distribution and the actor's."""


class ValueLossConfig(Section):
    """Half the squared error to the return, clipped around the old value."""

    clip: float | None = Field(default=0.2, gt=0)
    """Largest change of a value that counts, in units of the reward; null: any."""
    coefficient: float = Field(default=0.1, gt=0)
    """Factor of the loss; 0.1 as in the N+ details (it matters through gradient clipping)."""
    mean: LossMean = "token"
    """As `ppo.policy.mean`."""
    normalise: bool = False
    """Regress to returns less their mean, in units of their standard deviation. Both are of all returns of the run so
    far, and are saved with the checkpoint and the critic. Only for critics with a new head; of use where returns are
    far from the range -1 … 1."""
