"""Rows of a PPO step, and what is computed of their tokens where they are: small numbers flow in and out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from orchestrator.errors import NotFinite
from orchestrator.ppo.advantages import whitened
from orchestrator.ppo.experience import (
    Estimates,
    Experience,
    Terms,
    by_role,
    estimates,
    in_units_of,
    not_finite,
    rewards_of,
    truncation,
)
from orchestrator.ppo.moments import Moments
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.stats import TokenSums, token_sums
from roles.batch import Scored


@dataclass(slots=True)
class RowShard:
    """Neighbouring rows of a step's batch, with all responses to each of their prompts.

    The methods are called in their order here, each on all shards of the batch before the next.
    """

    scored: Scored
    first: int = 0
    """The batch's number of the first row."""
    experience: Experience = field(init=False)
    """The training data."""
    _rewards: Tensor = field(init=False)
    _estimates: Estimates = field(init=False)

    def reward(self, scores: Tensor, terms: Terms, batch: int) -> Moments | NotFinite:
        """Compute the rewards from the final scores, float `[rows]`. Returns the moments of those that are to be
        whitened, or what is not finite. `batch`: rows of all shards."""
        wrong = not_finite(self.scored, self.first, batch)
        if wrong is not None:
            return wrong
        self._rewards = rewards_of(self.scored, scores, terms)
        whitens, (trained, _) = terms.ppo.whiten_rewards, truncation(self.scored, terms.ppo)
        return Moments.where(self._rewards, trained) if whitens else Moments()

    def estimate(self, baselines: Tensor | None, over: Moments, terms: Terms) -> TokenSums:
        """Estimate advantages and returns. `over`: moments of the batch's rewards; `baselines`: see `estimates`."""
        scale = terms.value_scale
        values = self.scored.values if scale is None else scale.restored(self.scored.values)
        scored = replace(self.scored, values=values)
        self._estimates = estimates(scored, self._rewards, baselines, over, terms)
        trained, _ = truncation(scored, terms.ppo)
        return token_sums(scored, trained, self._rewards, *self._estimates)

    def finish(self, over: Moments, value_scale: RunningScale | None, terms: Terms) -> None:
        """Make the training data. `over`: moments of the batch's advantages; `value_scale`: units of the critic's
        targets; None: those of the rewards."""
        advantages, returns = self._estimates
        trained, _ = truncation(self.scored, terms.ppo)
        advantages = whitened(advantages, trained, over) if terms.ppo.whitens else advantages
        made = by_role(self.scored, trained, advantages, returns, terms.ppo, self.first)
        critic = made.critic if value_scale is None else in_units_of(value_scale, made.critic)
        self.experience = replace(made, critic=critic)
