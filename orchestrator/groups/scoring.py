"""The driver's side of the role groups: spread rows over ranks, wait for answers, put them back in order.

`orchestrator.groups.build` makes `Roles`; `orchestrator.ppo.step`, `training` and `evaluation` use them. No row of a
batch is sent to a rank that does not need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.config import Deadlines
from cluster.ranks.calls import Call, wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.groups.policy import Policy
from orchestrator.groups.reward import Reward, Scores
from orchestrator.groups.spread import Part, Spread, spread
from roles.actor import Actor
from roles.batch import Rollouts, Scored
from roles.critic import Critic
from roles.reference import FrozenPolicy
from roles.reward_model import Scorer


@dataclass(frozen=True, slots=True)
class EvaluationRoles:
    """What it takes to measure a policy."""

    cluster: RayCluster
    policy: Policy
    reward: Reward
    reference: RoleGroup[FrozenPolicy]
    judge: RoleGroup[Scorer] | None
    deadlines: Deadlines


@dataclass(frozen=True, slots=True)
class Roles(EvaluationRoles):
    """What it takes to train one."""

    actor: RoleGroup[Actor]
    critic: RoleGroup[Critic] | None
    """None where the advantages need no values."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """The scoring passes over one part of the rollouts, under way side by side."""

    part: Part
    rollouts: Rollouts
    old_logprobs: Spread
    reference_logprobs: Spread
    scores: Scores
    values: Spread | None
    """None without a critic."""

    @property
    def calls(self) -> list[Call[Tensor]]:
        """All that is waited for."""
        passes = [self.old_logprobs, self.reference_logprobs, *([self.values] if self.values else [])]
        return [*(answer.call for answer in passes), *self.scores.calls]


def start_scoring(roles: Roles, part: Part, rollouts: Rollouts) -> Scoring:
    """Start the passes; returns at once."""
    return Scoring(
        part,
        rollouts,
        old_logprobs=spread(roles.actor, Actor.logprobs, rollouts),
        reference_logprobs=spread(roles.reference, FrozenPolicy.reference_logprobs, rollouts),
        values=spread(roles.critic, Critic.values, rollouts) if roles.critic else None,
        scores=roles.reward.start(rollouts),
    )


def finish_scoring(scorings: Sequence[Scoring], deadline_s: float) -> Scored:
    """Wait for all passes; the rows of all parts, in order. Without a critic every value is 0."""
    wait_all([call for scoring in scorings for call in scoring.calls], deadline_s)
    parts = []
    for scoring in sorted(scorings, key=lambda scoring: scoring.part):
        rollouts = scoring.rollouts
        fields = {f.name: getattr(rollouts, f.name) for f in dataclasses.fields(Rollouts)}
        old, reference = scoring.old_logprobs.result(deadline_s), scoring.reference_logprobs.result(deadline_s)
        values = scoring.values.result(deadline_s) if scoring.values else torch.zeros_like(rollouts.rollout_logprobs)
        scores, apart = scoring.scores.result(deadline_s)
        parts.append(
            Scored(
                **fields,
                old_logprobs=old,
                reference_logprobs=reference,
                values=values,
                scores=scores,
                disagreement=apart,
            )
        )
    return Scored.concatenate(parts)
