"""Rows of a PPO step, and what is computed of their tokens where they are: small numbers flow in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from orchestrator.errors import NotFinite
from orchestrator.groups.canary import EngineGap, SeenRows
from orchestrator.groups.scoring import scored_rows
from orchestrator.groups.spread import tokens_of
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
    trained_tokens,
)
from orchestrator.ppo.moments import Moments
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.stats import TokenSums, token_sums
from roles.batch import Prompts, Rollouts, Scored
from roles.config.rollout import RolloutConfig
from roles.rows import Batch


@dataclass(frozen=True, slots=True)
class ScoringPass:
    """What the ranks of one scoring pass are sent, or of several."""

    reads: Callable[[Rollouts], Any]
    """Rollouts → a batch with the fields that it reads."""
    parts: list[list[int]]
    """Of each rank, its rows."""


class RowShard:
    """Neighbouring rows of a step's batch, with all responses to each of their prompts.

    In the driver's process it is made of scored rows; as a rank of its own (a *keeper*) it is empty at first, and gets
    the rows of each step by `take` and `fill`. The methods are called in their order here, each on all shards of the
    batch before the next.
    """

    def __init__(self, scored: Scored | None = None, first: int = 0) -> None:
        """`first`: the batch's number of the first row."""
        self._first = first
        self._rollouts: Rollouts
        self._scored: Scored
        self._trained: Tensor
        self._rewards: Tensor
        self._estimates: Estimates
        self.experience: Experience
        """The training data."""
        if scored is not None:
            self._scored = scored

    def __len__(self) -> int:
        return len(self._scored)

    def take(self, first: int, texts: Prompts | None, passes: Sequence[ScoringPass], *parts: Rollouts) -> list[Any]:
        """Keep the rollouts of a step; the batches for scoring, one for each rank of each pass.

        Args:
            first: the batch's number of the first row.
            texts: the prompts, whose texts and columns the engines were not sent; None: they were.
        """
        vars(self).clear()  # what is left of the step before is as large
        rollouts = Rollouts.concatenate(parts)
        if texts is not None:
            rollouts = replace(rollouts, prompts=texts.texts, columns=texts.columns)
        self._first, self._rollouts = first, rollouts
        return [rows for own in passes for rows in own.reads(rollouts).split(own.parts)]

    def fill(
        self,
        scores: Tensor,
        disagreement: Tensor,
        named: list[dict[str, float]],
        parts: Mapping[str, list[list[int]]],
        *answers: Tensor,
    ) -> None:
        """Keep what the passes have computed.

        Args:
            scores, disagreement, named: of each row, as in `Scored`.
            parts: field of `Scored` → of each rank that computes it, its rows.
            answers: of each of these ranks, float32 `[n]`: a number for each generated token.
        """
        left, mask = iter(answers), self._rollouts.response_mask
        tokens = {name: tokens_of([next(left) for _ in own], own, mask) for name, own in parts.items()}
        self._scored = scored_rows(self._rollouts, tokens, scores, disagreement, named)

    def some(self, rows: Sequence[int]) -> Scored:
        """Those rows of the shard."""
        return self._scored.select(rows)

    def gaps(self, made_by: Sequence[int], how: RolloutConfig) -> dict[int, EngineGap]:
        """Of each engine, how far its log-probabilities are from the actor's. `made_by`: the engine of each row."""
        return SeenRows(self._rollouts, self._scored.old_logprobs, made_by).by_engine(how)

    def reward(self, scores: Tensor, terms: Terms) -> Moments | NotFinite:
        """Compute the rewards from the final scores, float `[rows]`. Returns the moments of those that are to be
        whitened, or what is not finite."""
        wrong = not_finite(self._scored, self._first)
        if wrong is not None:
            return wrong
        self._rewards = rewards_of(self._scored, scores, terms)
        self._trained = trained_tokens(self._scored.rollouts, terms.ppo)
        return Moments.where(self._rewards, self._trained) if terms.ppo.whiten_rewards else Moments()

    def estimate(self, baselines: Tensor | None, over: Moments, terms: Terms) -> TokenSums:
        """Estimate advantages and returns. `over`: moments of the batch's rewards; `baselines`: see `estimates`."""
        scale = terms.value_scale
        values = self._scored.values if scale is None else scale.restored(self._scored.values)
        scored = replace(self._scored, values=values)
        self._estimates = estimates(scored, self._trained, self._rewards, baselines, over, terms)
        return token_sums(scored, self._trained, self._rewards, *self._estimates)

    def finish(self, over: Moments, value_scale: RunningScale | None, terms: Terms) -> None:
        """Make the training data. `over`: moments of the batch's advantages; `value_scale`: units of the critic's
        targets; None: those of the rewards."""
        (advantages, returns), trained = self._estimates, self._trained
        advantages = whitened(advantages, trained, over) if terms.ppo.whitens else advantages
        made = by_role(self._scored, trained, advantages, returns, terms.ppo, self._first)
        del self._rewards, self._estimates  # as large as the rows
        critic = made.critic if value_scale is None else in_units_of(value_scale, made.critic)
        self.experience = replace(made, critic=critic)

    def share(self, actor: Sequence[Sequence[int]], critic: Sequence[Sequence[int]]) -> list[Batch]:
        """The training data of some ranks of the actor, then of the critic: of each, rows of this shard, which keeps
        none of it."""
        made = self.experience
        del self.experience
        return [*made.actor.split(actor), *made.critic.split(critic)]
