"""The rollout engines as one policy: prompts in, rollouts of one weight version out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.config import Deadlines
from cluster.ranks.role_group import RoleGroup
from orchestrator.errors import TetrarchError
from orchestrator.groups.spread import Part
from roles.actor import Actor
from roles.batch import Prompts, Rollouts
from roles.rollout import RolloutEngine

FREED_S = 2.0
"""Seconds until the memory of a killed process is free again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The actor's vLLM half: one or more engines with the same weights."""

    engines: RoleGroup[RolloutEngine]
    deadlines: Deadlines
    sleeps: bool = False
    """Whether the engines release their memory between generating and the next push."""
    environment: bool = True
    """Whether the engines are sent the prompts' texts and columns, which only an environment reads."""

    def generate(self, prompts: Prompts, *, version: int) -> Rollouts:
        """Generate responses to all `prompts`, in their order, with the weights of `version`."""
        self._wake("weights", "kv_cache")
        shares = self._shares(prompts)
        asked = [self._asked(share) for share in shares]
        answers = self.engines.map(RolloutEngine.generate, asked, version).result(self.deadlines.generate_s)
        self.rest()
        answered = zip(answers, shares, strict=True)
        return Rollouts.concatenate([self._whole(part, share, version) for part, share in answered if len(part)])

    def stream(self, prompts: Prompts, *, version: int) -> Iterator[tuple[Part, Rollouts]]:
        """As `generate`, in parts, each as soon as it is complete. What is in a part is fixed, the order of parts is
        not.

        Engines that sleep do so before a part is returned, because the roles that score it need their memory; all rows
        are then one part, so that sharded weights are gathered only once.
        """
        parts = self._parts(prompts, version)
        if not self.sleeps:
            return parts
        whole = [rollouts for _, rollouts in sorted(parts, key=lambda found: found[0])]
        self.rest(keep_weights=False)
        return iter([((0, 0), Rollouts.concatenate(whole))])

    def rest(self, *, keep_weights: bool = True) -> None:
        """Let the engines sleep. They keep their weights if `keep_weights`; otherwise a push must renew them before
        the next call."""
        if self.sleeps:
            self.engines.call(RolloutEngine.sleep, keep_weights).result(self.deadlines.push_s)

    def end(self) -> None:
        """Before a run ends early: end engines that hold memory which other roles need to save their state."""
        if self.sleeps:
            self.engines.stop()
            time.sleep(FREED_S)

    def _parts(self, prompts: Prompts, version: int) -> Iterator[tuple[Part, Rollouts]]:
        self._wake("weights", "kv_cache")
        shares, deadline_s = self._shares(prompts), self.deadlines.generate_s
        asked = [self._asked(share) for share in shares]
        for engine, (first, part) in self.engines.stream(RolloutEngine.stream, asked, version, deadline_s=deadline_s):
            share = shares[engine].select(range(first, first + len(part)))
            yield (engine, first), self._whole(part, share, version)

    def _shares(self, prompts: Prompts) -> list[Prompts]:
        return prompts.split(_contiguous(len(prompts), len(self.engines)))

    def _asked(self, prompts: Prompts) -> Prompts:
        """The fields of `prompts` that the engines read."""
        return prompts if self.environment else replace(prompts, texts=[""] * len(prompts), columns={})

    def _whole(self, rollouts: Rollouts, prompts: Prompts, version: int) -> Rollouts:
        """The responses to `prompts`, with the fields that the engines were not sent."""
        _check_version(rollouts, version)
        if self.environment:
            return rollouts
        return replace(rollouts, prompts=prompts.texts, columns=prompts.columns)

    def load(self, actor: RoleGroup[Actor], *, version: int) -> None:
        """Send the actor's weights to every engine as `version`."""
        self._wake("weights")
        actor.call(Actor.push, version).result(self.deadlines.push_s)
        self._wake("kv_cache")

    def _wake(self, *parts: str) -> None:
        if self.sleeps:
            self.engines.call(RolloutEngine.wake, parts).result(self.deadlines.push_s)


def _contiguous(rows: int, parts: int) -> list[range]:
    """The numbers of `rows` rows in `parts` consecutive ranges whose lengths differ by at most one."""
    cuts = [rows * part // parts for part in range(parts + 1)]
    return [range(first, last) for first, last in itertools.pairwise(cuts)]


def _check_version(rollouts: Rollouts, version: int) -> None:
    others = sorted(set(rollouts.versions.tolist()) - {version})
    if others:
        raise TetrarchError(
            f"asked for samples of weights version {version}, got some of {others}; the engines are stale"
        )
