"""How far the policy may go from the reference: the section `ppo.kl`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.metric_types import KL_TOKENS
from roles.config.section import Section


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    """A constant."""
    coefficient: float = Field(default=0.05, ge=0)
    """β, the reward that one nat of KL costs; 0.05 as in the N+ details."""


class AdaptiveKl(Section):
    """Ziegler et al. (arXiv 1909.08593, section 2.2): times
    1 + clip(KL/target - 1, ±0.2)·samples/horizon each step."""

    type: Literal["adaptive"]
    """A controller that steers towards a target."""
    initial: float = Field(default=0.05, gt=0)
    """β at the first step."""
    target: float = Field(gt=0)
    """KL that the controller steers towards, in nats per response (summed over its tokens)."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples over which the coefficient may grow or shrink by about 20 %."""


KlControllerConfig = Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")]


class KlBudget(Section):
    """What happens when the mean KL of a batch is above a bound; null: nothing. Bounds are in nats per response of
    `tokens` generated tokens."""

    tokens: int | None = Field(default=KL_TOKENS, ge=1)
    """The bounds hold for responses of this length, and grow and shrink with the mean length of the batch's responses:
    10 nats in 50 tokens are as far as 200 nats in 1,000. null: they hold for every length."""
    warn: float | None = Field(default=10.0, gt=0)
    """Above this KL a warning is printed; at about 10 the policy drifts."""
    slow_down: float | None = Field(default=None, gt=0)
    """After every step above this KL that trains the actor, its learning rate is multiplied by `factor`."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """What the learning rate is multiplied by at each step above `slow_down`."""
    stop: float | None = Field(default=None, gt=0)
    """Above this KL the run saves a checkpoint and ends; at about 20 the policy collapses."""

    def at(self, bound: float, length: float) -> float:
        """A bound for responses of `length` generated tokens, mean."""
        return bound if self.tokens is None else bound * length / self.tokens


class KlConfig(Section):
    """The penalty for leaving the reference: by default k1 in the per-token reward, which has the intended optimum."""

    controller: KlControllerConfig = FixedKl()
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
    """Allow k1 in the loss (no penalty at all), and k2 or k3 in the reward."""
