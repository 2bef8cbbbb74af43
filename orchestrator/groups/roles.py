"""The driver's side of the role groups: spread rows over ranks, wait for answers, put them back in order.

`orchestrator.groups.build` makes `Roles`; `orchestrator.ppo.step`, `training` and `evaluation` use them. No row of a
batch is sent to a rank that does not need it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cluster.config import Deadlines
from cluster.ranks.calls import Call, wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.errors import TetrarchError
from orchestrator.ppo.scores import CombineConfig, combine
from roles.actor import Actor
from roles.batch import Preferences, Prompts, Rollouts, Scored
from roles.critic import Critic
from roles.packing import balance
from roles.reference import FrozenPolicy
from roles.reward_model import Scorer
from roles.rollout import RolloutEngine

R = TypeVar("R")
Rows = TypeVar("Rows", Rollouts, Preferences)

FREED_S = 2.0
"""For the memory of a process that is ended to be free again."""

Part = tuple[int, int]
"""(engine, its first row) of some rollouts; parts sorted by it have the rows of the prompts, in their order."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The actor's vLLM half: one or more engines with the same weights."""

    engines: RoleGroup[RolloutEngine]
    deadlines: Deadlines
    sleeps: bool = False
    """Whether the engines give their memory away between generating and the next push."""

    def generate(self, prompts: Prompts, *, version: int) -> Rollouts:
        """Answer all `prompts`, in their order, with the weights of `version`."""
        self._wake("weights", "kv_cache")
        shares = prompts.split(_contiguous(len(prompts), len(self.engines)))
        answers = self.engines.map(RolloutEngine.generate, shares, version).result(self.deadlines.generate_s)
        self.rest()
        return Rollouts.concatenate([_of_version(rollouts, version) for rollouts in answers if len(rollouts)])

    def stream(self, prompts: Prompts, *, version: int) -> Iterator[tuple[Part, Rollouts]]:
        """The same in parts, each as soon as it is done. What is in a part is always the same; when it comes is not.

        Engines that sleep do so before anything is handed on, because whoever scores it needs their memory; it is one
        part then, so that sharded weights are gathered once for all engines' rows.
        """
        parts = self._parts(prompts, version)
        if not self.sleeps:
            return parts
        whole = [rollouts for _, rollouts in sorted(parts, key=lambda found: found[0])]
        self.rest(keep_weights=False)
        return iter([((0, 0), Rollouts.concatenate(whole))])

    def rest(self, *, keep_weights: bool = True) -> None:
        """Let the engines sleep; with their weights, unless a push renews them before they are asked again."""
        if self.sleeps:
            self.engines.call(RolloutEngine.sleep, keep_weights).result(self.deadlines.push_s)

    def end(self) -> None:
        """Before a run ends early: end engines that hold memory which others need to save what they have."""
        if self.sleeps:
            self.engines.stop()
            time.sleep(FREED_S)

    def _parts(self, prompts: Prompts, version: int) -> Iterator[tuple[Part, Rollouts]]:
        self._wake("weights", "kv_cache")
        shares = prompts.split(_contiguous(len(prompts), len(self.engines)))
        deadline_s = self.deadlines.generate_s
        for engine, (first, part) in self.engines.stream(RolloutEngine.stream, shares, version, deadline_s=deadline_s):
            yield (engine, first), _of_version(part, version)

    def load(self, actor: RoleGroup[Actor], *, version: int) -> None:
        """Bring the actor's weights into every engine and number them `version`."""
        self._wake("weights")
        actor.call(Actor.push, version).result(self.deadlines.push_s)
        self._wake("kv_cache")

    def _wake(self, *parts: str) -> None:
        if self.sleeps:
            self.engines.call(RolloutEngine.wake, parts).result(self.deadlines.push_s)


@dataclass(frozen=True, slots=True)
class Reward:
    """Whoever scores responses: one scorer, or the members of an ensemble, whose scores are combined, or nobody; and
    what an environment has paid."""

    members: dict[str, RoleGroup[Scorer]]
    """By role: `reward`, or `reward.NAME`."""
    how: CombineConfig

    def start(self, rollouts: Rollouts) -> Scores:
        """Start them all; returns at once."""
        members = {role: spread(group, Scorer.score, rollouts) for role, group in self.members.items()}
        return Scores(members, self.how, rollouts.turn_rewards.sum(1))


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
class Spread:
    """One answer a row, under way: rank r of `call` answers for the rows `parts[r]`."""

    call: Call[Tensor]
    parts: list[list[int]]
    width: int

    def result(self, deadline_s: float) -> Tensor:
        """float32 `[batch]` or `[batch, time]`, in the rows' own order."""
        answers = [answer for answer in self.call.result(deadline_s) if len(answer)]
        if answers[0].dim() == 2:
            answers = [torch.nn.functional.pad(answer, (0, self.width - answer.shape[1])) for answer in answers]
        joined = torch.cat(answers)
        order = torch.tensor([row for part in self.parts for row in part])
        return torch.empty_like(joined).index_copy_(0, order, joined)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of some responses, under way."""

    members: dict[str, Spread]
    how: CombineConfig
    paid: Tensor
    """float32 `[batch]`: by the environment, in all turns."""

    @property
    def calls(self) -> list[Call[Tensor]]:
        """All that is waited for."""
        return [own.call for own in self.members.values()]

    def result(self, deadline_s: float) -> tuple[Tensor, Tensor]:
        """Combined, with what was paid, and how far the members are apart (0 of one alone): float32 `[batch]` each."""
        if not self.members:
            return self.paid, torch.zeros_like(self.paid)
        combined, apart = combine({role: own.result(deadline_s) for role, own in self.members.items()}, self.how)
        return combined + self.paid, apart


def spread(group: RoleGroup[R], method: Callable[[R, Rows], Tensor], batch: Rows) -> Spread:
    """Start `method` on every rank of `group` with its share of the rows, shared out by tokens."""
    parts = balance(batch.lengths.tolist(), len(group))
    return Spread(group.map(method, batch.split(parts)), parts, batch.token_ids.shape[1])


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


def _contiguous(rows: int, parts: int) -> list[range]:
    """`rows` row numbers cut into `parts` runs whose lengths differ by at most one."""
    cuts = [rows * part // parts for part in range(parts + 1)]
    return [range(first, last) for first, last in itertools.pairwise(cuts)]


def _of_version(rollouts: Rollouts, version: int) -> Rollouts:
    others = sorted(set(rollouts.versions.tolist()) - {version})
    if others:
        raise TetrarchError(
            f"asked for samples of weights version {version}, got some of {others}; the engines are stale"
        )
    return rollouts
