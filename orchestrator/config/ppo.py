"""What a user may say about the algorithm: advantages, KL penalty, truncated responses, losses.

Imports no engine.
"""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.advantages import AdvantageConfig, Gae
from orchestrator.config.kl import KlConfig
from orchestrator.config.ptx import PtxConfig
from orchestrator.config.scores import ScoreConfig, ScoreTruncated, TruncationConfig
from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.section import Section


class DynamicSampling(Section):
    """Dynamic sampling (DAPO, arXiv 2503.14476, equation 11): a prompt whose responses all have the same score is left
    out, and another one is drawn."""

    rounds: int = Field(default=4, ge=2)
    """Most rounds of drawing in a step, the first one included. After the last one, prompts without a spread fill the
    batch."""


class PpoConfig(Section):
    """Proximal policy optimisation (Schulman et al., arXiv 1707.06347) with the N+ details (arXiv 2403.17031)."""

    epochs: int = Field(default=4, ge=1)
    """Passes over a batch."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps per pass; must divide the number of samples of a PPO step."""
    policy: PolicyLossConfig = PolicyLossConfig()
    """The actor's loss."""
    value: ValueLossConfig = ValueLossConfig()
    """The critic's loss."""
    advantage: AdvantageConfig = Gae()
    """How advantages are estimated."""
    dynamic_sampling: DynamicSampling | None = None
    """What becomes of prompts whose responses all have the same score; null: they are trained on."""
    whiten_advantages: bool | None = None
    """Over the valid tokens of the global batch; biased variance. null: as the estimator's paper has it (gae and both
    reinforce++ do, the others do not)."""
    score: ScoreConfig = ScoreConfig()
    """What becomes of a score before it is a reward."""
    whiten_rewards: bool = False
    """Divide the rewards of a batch by their standard deviation; their mean stays."""
    kl: KlConfig = KlConfig()
    """The penalty for leaving the reference."""
    truncated: TruncationConfig = ScoreTruncated()
    """What becomes of a response that the length limit cut."""
    ptx: PtxConfig | None = None
    """A pre-training loss beside the actor's; null: none."""

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps in one PPO step."""
        return self.epochs * self.mini_batches

    @property
    def uses_critic(self) -> bool:
        """Whether the advantages need values."""
        return self.advantage.needs_critic

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        if self.whiten_advantages is not None:
            return self.whiten_advantages
        return self.advantage.whitens
