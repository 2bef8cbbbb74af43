"""Several scorers as one reward: responses flow in, one score for each flows out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.ranks.role_group import RoleGroup
from orchestrator.groups.spread import Shared, Spread, spread
from roles.batch import Responses, Rollouts, Sequences
from roles.config.rewards import CautiousScore, MeanScore, WeightedScore, WorstScore
from roles.reward_call import NamingScorer
from roles.reward_model import Scorer

CombineConfig = MeanScore | WorstScore | CautiousScore | WeightedScore
ToScore = Rollouts | Responses
"""Responses of a run, or others, which no environment has paid for."""


def combine(scores: Mapping[str, Tensor], how: CombineConfig) -> tuple[Tensor, Tensor]:
    """The combined scores of an ensemble.

    Mean, worst and mean minus a multiple of the standard deviation: Coste et al., arXiv 2310.02743, section 3.

    Args:
        scores: role of each member → its scores, float `[batch]`.

    Returns:
        the combined scores, and the members' biased standard deviation, `[batch]` each.
    """
    stacked = torch.stack(list(scores.values()))
    spread = stacked.std(0, correction=0)
    match how:
        case WorstScore():
            return stacked.amin(0), spread
        case CautiousScore(factor=factor):
            return stacked.mean(0) - factor * spread, spread
        case WeightedScore(weights=weights):
            weighted = [weights[role.removeprefix("reward.")] * own for role, own in scores.items()]
            return torch.stack(weighted).sum(0), spread
        case _:
            return stacked.mean(0), spread


@dataclass(frozen=True, slots=True)
class Member:
    """One scorer of a reward."""

    group: RoleGroup[Any]
    """Ranks of a `Scorer`, which is sent what `reads` returns."""
    reads: Callable[[ToScore], Sequences | Responses] = Responses.of
    """The fields that the scorer is sent."""
    names: bool = False
    """Whether it is a `NamingScorer`, which may give named numbers beside the scores."""

    def start(self, responses: ToScore, shared: Shared | None = None) -> Spread:
        """Start scoring on every rank; returns at once. `shared`: see `spread`."""
        return spread(self.group, self.method, self.reads(responses), shared)

    @property
    def method(self) -> Callable[[Any, Any], Any]:
        """What is called on every rank."""
        return NamingScorer.row_scores if self.names else Scorer.score


@dataclass(frozen=True, slots=True)
class Reward:
    """What scores responses: one scorer, an ensemble, or none; plus the environment's rewards."""

    members: dict[str, Member]
    """Role (`reward`, or `reward.NAME`) → scorer."""
    how: CombineConfig

    def start(self, responses: ToScore, shared: Shared | None = None) -> Scores:
        """Start all scorers; returns at once. `shared`: see `spread`."""
        shared = {} if shared is None else shared
        members = {role: member.start(responses, shared) for role, member in self.members.items()}
        paid = responses.turn_rewards.sum(1) if isinstance(responses, Rollouts) else torch.zeros(len(responses))
        return Scores(members, self.how, paid)


@dataclass(frozen=True, slots=True)
class Scores:
    """Running calls that score some responses."""

    members: dict[str, Spread]
    how: CombineConfig
    paid: Tensor
    """float32 `[batch]`: rewards of the environment, summed over the turns."""

    @property
    def spreads(self) -> list[Spread]:
        """All calls to wait for."""
        return list(self.members.values())

    def result(self, deadline_s: float) -> tuple[Tensor, Tensor]:
        """(scores with the environment's rewards, standard deviation of the members or 0 for one), float32 `[batch]`
        each."""
        if not self.members:
            return self.paid, torch.zeros_like(self.paid)
        combined, apart = combine({role: own.result(deadline_s) for role, own in self.members.items()}, self.how)
        return combined + self.paid, apart

    def named(self, deadline_s: float) -> list[dict[str, float]]:
        """Of each response `reward/NAME` → number that the reward gives beside the score; of an ensemble also
        `score/MEMBER` → score, and `reward/MEMBER/NAME` → number."""
        rows: list[dict[str, float]] = [{} for _ in range(len(self.paid))]
        for role, own in self.members.items():
            member = role.partition(".")[2]
            scores = own.result(deadline_s).tolist() if member else []
            for row, score in zip(rows, scores, strict=False):
                row[f"score/{member}"] = score
            for row, said in zip(rows, own.named(deadline_s), strict=True):
                row |= {"/".join(filter(None, ("reward", member, name))): number for name, number in said.items()}
        return rows
