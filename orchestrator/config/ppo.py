"""What a user may say about the algorithm: advantages, KL penalty, truncated responses, losses.

Imports no engine; read by `orchestrator.config.run`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.roles import Section


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


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    """A constant."""
    coefficient: float = Field(default=0.05, ge=0)
    """β: reward a nat; 0.05 as in the N+ details."""


class AdaptiveKl(Section):
    """Ziegler et al. (arXiv 1909.08593, section 2.2): times
    1 + clip(KL/target - 1, ±0.2)·samples/horizon each step."""

    type: Literal["adaptive"]
    """A controller that steers towards a target."""
    initial: float = Field(default=0.05, gt=0)
    """β at the first step."""
    target: float = Field(gt=0)
    """Nats a response, summed over its tokens."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples over which the coefficient may grow or shrink by about 20 %."""


KlController = Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")]


class KlBudget(Section):
    """What happens when the KL of a batch, in nats a response, is over a bound; null: nothing."""

    warn: float | None = Field(default=10.0, gt=0)
    """Say so; 10 is where the policy drifts."""
    slow_down: float | None = Field(default=None, gt=0)
    """Multiply the actor's learning rate by `factor`, at every step that is over."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """Of `slow_down`."""
    stop: float | None = Field(default=None, gt=0)
    """Save a checkpoint and end the run; 20 is where the policy collapses."""


class KlConfig(Section):
    """The penalty for leaving the reference: by default k1 in the per-token reward, which has the intended optimum."""

    controller: KlController = FixedKl()
    """Where the coefficient comes from."""
    where: Literal["reward", "loss"] = "reward"
    """`reward`: each token's reward loses it; `loss`: the actor's loss gains it, and no reward knows of it."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of KL(π‖π_ref) at a sampled token. k1 in the reward has the optimum π_ref·exp(r/β)/Z of whole responses. In the
    loss k2 has it for every token given those before, and k3 (as in GRPO) that of the KL the other way round; neither
    sees what a token does to later ones. The others optimise something else."""
    budget: KlBudget = KlBudget()
    """What happens when the policy goes too far."""
    allow_biased: bool = False
    """Take k1 in the loss (no penalty at all), or k2 or k3 in the reward, all the same."""


class ScoreTruncated(Section):
    """A response cut by the length limit is scored like any other."""

    type: Literal["score"] = "score"
    """Like any other."""


class PenaliseTruncated(Section):
    """EOS trick of the N+ details: a response without EOS gets a fixed score."""

    type: Literal["penalty"]
    """A fixed score."""
    score: float = -1.0
    """In place of the reward's own."""


class MaskTruncated(Section):
    """A truncated response is not trained on."""

    type: Literal["mask"]
    """Left out of both losses."""


class BootstrapTruncated(Section):
    """The critic's value of the cut state stands for what would have followed; the score is added as usual."""

    type: Literal["bootstrap"]
    """Continued by the critic."""


TruncationConfig = Annotated[
    ScoreTruncated | PenaliseTruncated | MaskTruncated | BootstrapTruncated, Field(discriminator="type")
]


class NoLengthPenalty(Section):
    """Length costs nothing."""

    type: Literal["none"] = "none"
    """Nothing."""


class LinearLength(Section):
    """Every generated token costs the same."""

    type: Literal["linear"]
    """A price a token."""
    per_token: float = Field(gt=0)
    """In units of the score."""


class SoftOverlong(Section):
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13): nothing at first, then rising."""

    type: Literal["soft_overlong"]
    """Rising towards the longest."""
    longest: int = Field(ge=1)
    """Tokens at which the penalty is whole."""
    buffer: int = Field(ge=1)
    """Tokens before that over which it rises."""
    penalty: float = Field(default=1.0, gt=0)
    """In units of the score."""


LengthPenalty = Annotated[NoLengthPenalty | LinearLength | SoftOverlong, Field(discriminator="type")]


class ScoreConfig(Section):
    """What becomes of a score before it is a reward: normalised, clipped, less the length penalty, in this order."""

    normalise: bool = False
    """By mean and standard deviation of all scores of the run so far (saved with the checkpoint)."""
    clip: float | None = Field(default=None, gt=0)
    """Scores are held within ± this; null is off."""
    length: LengthPenalty = NoLengthPenalty()
    """Off by default."""


class PpoConfig(Section):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) with the N+ details (arXiv 2403.17031)."""

    epochs: int = Field(default=4, ge=1)
    """Passes over a batch."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps a pass; must divide the samples of a step."""
    policy: PolicyLossConfig = PolicyLossConfig()
    """The actor's loss."""
    value: ValueLossConfig = ValueLossConfig()
    """The critic's loss."""
    advantage: AdvantageConfig = Gae()
    """How advantages are estimated."""
    whiten_advantages: bool | None = None
    """Over the valid tokens of the global batch; biased variance. null: as the estimator's paper has it (gae and both
    reinforce++ do, the others do not)."""
    score: ScoreConfig = ScoreConfig()
    """What becomes of a score before it is a reward."""
    whiten_rewards: bool = False
    """Scale only: rewards keep their mean."""
    kl: KlConfig = KlConfig()
    """The penalty for leaving the reference."""
    truncated: TruncationConfig = ScoreTruncated()
    """What becomes of a response that the length limit cut."""

    @property
    def optimizer_steps(self) -> int:
        """Of one PPO step."""
        return self.epochs * self.mini_batches

    @property
    def uses_critic(self) -> bool:
        """Whether the advantages need values."""
        return self.advantage.type in NEEDS_CRITIC

    @property
    def compares_responses(self) -> bool:
        """Whether the advantages need several responses to a prompt."""
        return isinstance(self.advantage, ReinforcePlusPlusBaseline | Rloo | Grpo | DrGrpo)

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return isinstance(self.advantage, Gae | ReinforcePlusPlus | ReinforcePlusPlusBaseline)
