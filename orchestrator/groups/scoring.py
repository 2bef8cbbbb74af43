"""The driver's side of the role groups: spread rows over ranks, wait for answers, put them back in order.

No row of a batch is sent to a rank that does not need it, and no field to a role that does not read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor

from cluster.config import Deadlines
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ACTOR, CRITIC, REFERENCE, ROLES
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward import Member, Reward, Scores
from orchestrator.groups.spread import Part, Shared, Spread, spread, wait_for
from roles.actor import Actor
from roles.batch import Rollouts, Scored, Sequences
from roles.critic import Critic
from roles.reference import FrozenPolicy
from roles.scored_parts import ROWS_OF_A_RANK


def class_of(role: str) -> type[Any]:
    """The class of a role of the table."""
    module, _, name = ROLES[role].made_by.rpartition(".")
    return cast(type[Any], getattr(import_module(module), name))


@dataclass(frozen=True, slots=True)
class EvaluationRoles:
    """The role groups that measure a policy."""

    cluster: RayCluster
    policy: Policy
    reward: Reward
    reference: RoleGroup[FrozenPolicy]
    judge: Member | None
    deadlines: Deadlines


@dataclass(frozen=True, slots=True)
class Roles(EvaluationRoles):
    """The role groups that train a policy."""

    actor: RoleGroup[Actor]
    critic: RoleGroup[Critic] | None
    """None if the advantages need no values."""
    labeller: Member | None = None
    """Who scores what the reward model is retrained on; None if nobody does."""
    recomputes: bool = True
    """Whether the actor computes the log-probabilities of all samples before its update; if not, the engines' stand for
    them."""
    frozen: Mapping[str, RoleGroup[Any]] = field(default_factory=dict)
    """Role → group, for the frozen roles of the table other than the reference."""
    keepers: RoleGroup[Any] | None = None
    """Who keeps the rows of a step: ranks of the role `keeper`; None: the driver."""

    @property
    def models(self) -> dict[str, RoleGroup[Any]]:
        """Role → group, for the roles that work in the phase `score`; without the reward, which may be several."""
        actor = self.actor if self.recomputes else None
        groups = {ACTOR: actor, REFERENCE: self.reference, CRITIC: self.critic, **self.frozen}
        return {role: group for role, group in groups.items() if group is not None}

    @property
    def least_rows(self) -> int:
        """Rows that are scored together, at least: what fills the ranks of every model. Functions and services take
        single rows as well."""
        models = [member.group for member in self.reward.members.values() if not member.names]
        groups = [*self.models.values(), *models]
        return ROWS_OF_A_RANK * max(len(group) for group in groups)


@dataclass(frozen=True, slots=True)
class Scoring:
    """The running scoring passes over one part of the rollouts."""

    part: Part
    rollouts: Rollouts
    answers: Mapping[str, Spread]
    """Field of Scored → the pass that computes it."""
    scores: Scores

    @property
    def spreads(self) -> list[Spread]:
        """All calls to wait for."""
        return [*self.answers.values(), *self.scores.spreads]

    def result(self, deadline_s: float) -> Scored:
        """The scored rows of this part."""
        mask = self.rollouts.response_mask
        answers = {name: answer.tokens(mask, deadline_s) for name, answer in self.answers.items()}
        return scored_rows(self.rollouts, answers, *self.scores.result(deadline_s), self.scores.named(deadline_s))


def scored_rows(
    rollouts: Rollouts,
    answers: Mapping[str, Tensor],
    scores: Tensor,
    disagreement: Tensor,
    named: list[dict[str, float]],
) -> Scored:
    """Rollouts with what the passes have answered: field of `Scored` → its numbers. A field that nobody computes is 0
    everywhere; only for the actor's log-probabilities the engines' stand."""
    engines = rollouts.rollout_logprobs
    nobody = {role.fills: torch.zeros_like(engines) for role in ROLES.values() if role.made_by and role.fills}
    fields = {**nobody, ROLES[ACTOR].fills: engines, **answers}
    return Scored(rollouts, **fields, scores=scores, disagreement=disagreement, named=named)


def start_scoring(roles: Roles, part: Part, rollouts: Rollouts) -> Scoring:
    """Start the scoring passes; returns at once."""
    sequences, shared = Sequences.of(rollouts), Shared()
    answers = {
        ROLES[role].fills: spread(group, getattr(class_of(role), ROLES[role].scored_by), sequences, shared)
        for role, group in roles.models.items()
    }
    return Scoring(part, rollouts, answers, roles.reward.start(rollouts, shared))


def finish_scoring(
    scorings: Sequence[Scoring], deadline_s: float, recovery: Recovery, beside: Scores | None = None
) -> Scored:
    """Wait for all passes, and for `beside`; the rows of all parts, in order."""
    spreads = [own for scoring in scorings for own in scoring.spreads]
    wait_for([*spreads, *(beside.spreads if beside else ())], deadline_s, recovery)
    ordered = sorted(scorings, key=lambda scoring: scoring.part)
    return Scored.concatenate([scoring.result(deadline_s) for scoring in ordered])


def reference_fingerprint(roles: Roles) -> str:
    """The fingerprint of the frozen model's weights."""

    def asked() -> list[str]:
        return roles.reference.call(FrozenPolicy.reference_fingerprint).result(roles.deadlines.score_s)

    return roles.policy.recovery.repeated(asked)[0]
