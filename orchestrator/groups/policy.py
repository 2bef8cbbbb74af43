"""The rollout engines as one policy: prompts in, rollouts of one weight version out."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.config import Deadlines
from cluster.errors import ClusterError
from cluster.ranks.failures import Death
from cluster.ranks.role_group import RoleGroup
from orchestrator.errors import TetrarchError
from orchestrator.groups.assignments import Assignment, Unanswered, contiguous, divided, home_assignments
from orchestrator.groups.engine_fleet import EngineFleet
from orchestrator.groups.kept_rows import KeeperRows, KeptPart, KeptRows
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.spread import Part
from roles.actor import Actor
from roles.batch import Prompts, Rollouts
from roles.rollout import RolloutEngine
from roles.scored_parts import scored_together

FREED_S = 2.0
"""Seconds until the memory of a killed process is free again."""


@dataclass(slots=True)
class Policy:
    """The actor's vLLM half: one or more engines with the same weights."""

    engines: RoleGroup[RolloutEngine]
    deadlines: Deadlines
    sleeps: bool = False
    """Whether the engines release their memory between generating and the next push."""
    environment: bool = True
    """Whether the engines are sent the prompts' texts and columns, which only an environment reads."""
    stream_samples: int | None = None
    """Rows of a part of `stream`; None: all rows of an engine."""
    recovery: Recovery = field(default_factory=Recovery)
    """What is done when an engine fails."""
    fleet: EngineFleet = field(init=False)
    made_by: list[int] = field(init=False, default_factory=list)
    """For each row of the latest prompts the number of the engine that answered it."""

    def __post_init__(self) -> None:
        self.fleet = EngineFleet(self.engines, self.deadlines, self.recovery, sleeps=self.sleeps)

    def generate(self, prompts: Prompts, *, version: int, sampled: Mapping[str, float] | None = None) -> Rollouts:
        """Generate responses to all `prompts`, in their order, with the weights of `version`; `sampled`: keys of
        `rollout` with other values for these."""
        parts = self._parts(prompts, version, RolloutEngine.generate, *([sampled] if sampled else []), unit=1)
        whole = [rollouts for _, rollouts in sorted(parts, key=lambda found: found[0])]
        self.rest()
        return Rollouts.concatenate(whole)

    def stream(self, prompts: Prompts, *, version: int, least: int = 1) -> Iterator[tuple[Part, Rollouts]]:
        """As `generate`, in parts, each as soon as it is complete and of at least `least` rows, as far as there are so
        many. What is in a part is fixed, the order of parts is not.

        Engines that sleep do so before a part is returned, because the roles that score it need their memory; all rows
        are then one part, so that sharded weights are gathered only once.
        """
        parts = self._parts(prompts, version, RolloutEngine.stream, unit=self.stream_samples)
        if not self.sleeps:
            return self._joined(parts, len(prompts), least)
        whole = [rollouts for _, rollouts in sorted(parts, key=lambda found: found[0])]
        self.rest(keep_weights=False)
        return iter([((0, 0), Rollouts.concatenate(whole))])

    def stream_kept(self, prompts: Prompts, keepers: Sequence[KeeperRows], *, version: int) -> Iterator[KeptRows]:
        """As `stream`, of rows that stay where they are: those of each keeper as soon as all of them are answered."""
        ranges = [rows for keeper in keepers for rows in keeper.engines]
        found: list[list[KeptPart]] = [[] for _ in keepers]
        keeper_of = [number for number, keeper in enumerate(keepers) for _ in keeper.engines]
        missing = [len(keeper.rows) for keeper in keepers]
        complete: list[KeptRows] = []
        parts = self._parts(prompts, version, RolloutEngine.stream_kept, unit=self.stream_samples, ranges=ranges)
        for (share, first), part in parts:
            number = keeper_of[share]
            found[number].append(replace(part, first=ranges[share].start + first))
            missing[number] -= len(part)
            if not missing[number]:
                complete.append(KeptRows(number, sorted(found[number], key=lambda own: own.first)))
                if not self.sleeps:
                    yield complete.pop()
        if self.sleeps:
            self.rest(keep_weights=False)
            yield from complete

    def _joined(self, parts: Iterator[tuple[Part, Rollouts]], rows: int, least: int) -> Iterator[tuple[Part, Rollouts]]:
        """`parts`, neighbours joined until they have `least` rows."""
        shares = contiguous(rows, len(self.engines))
        together = scored_together([len(share) for share in shares], self.stream_samples or 0, least)
        belongs = [number for number, joined in enumerate(together) for _ in joined]
        missing = Counter(belongs)
        waiting: dict[int, list[tuple[Part, Rollouts]]] = defaultdict(list)
        for found in parts:
            (share, first), rollouts = found
            number = belongs[shares[share].start + first]
            waiting[number].append(found)
            missing[number] -= len(rollouts)
            if not missing[number]:
                joined = sorted(waiting.pop(number), key=lambda found: found[0])
                whole = [rollouts for _, rollouts in joined]
                yield joined[0][0], whole[0] if len(whole) == 1 else Rollouts.concatenate(whole)

    def rest(self, *, keep_weights: bool = True) -> None:
        """Let the engines sleep, and wait until all have given their memory back. They keep their weights if
        `keep_weights`; otherwise a push must renew them before the next call."""
        asleep = self.engines.call(RolloutEngine.sleep, keep_weights) if self.sleeps else None
        while asleep is not None:
            try:
                asleep.result(self.deadlines.push_s)
                return
            except Death as error:  # its memory is free, and others need it now: the next call starts the engine again
                engines = {rank.identity for rank in asleep.ranks}
                if not self.recovery.config.engine_failures_per_hour or engines.isdisjoint(error.blamed):
                    raise
                asleep = asleep.without(error.blamed)

    def end(self) -> None:
        """Before a run ends early: end engines that hold memory which other roles need to save their state."""
        if self.sleeps:
            self.engines.stop()
            time.sleep(FREED_S)

    def _parts(
        self,
        prompts: Prompts,
        version: int,
        method: Callable[..., Any],
        *common: Any,
        unit: int | None,
        ranges: Sequence[range] | None = None,
    ) -> Iterator[tuple[Part, Any]]:
        """The responses to `prompts` in any order. `common`: what the method is given besides; `unit`: rows of an
        engine's share that one engine must answer together; `ranges`: the shares, and the responses stay where they are
        (`KeptPart`); None: equal shares, and the responses (`Rollouts`)."""
        self._wake("weights", "kv_cache")
        stay, ranges = ranges is not None, ranges or contiguous(len(prompts), len(self.engines))
        shares, self.made_by = self._asked(prompts).split(ranges), [-1] * len(prompts)
        running = self.engines.streaming(self.deadlines.generate_s)

        def begin(assignments: list[Assignment]) -> list[Assignment]:
            for given in assignments:
                given.rank = self.engines.ranks[given.engine]
                share = shares[given.share]
                asked = share if len(given.rows) == len(share) else share.select(given.rows)
                running.begin(given, given.engine, method, asked, version, *common, pairs=stay)
            return assignments

        assignments = begin(home_assignments([len(share) for share in shares], self.fleet.usable(version), unit))
        unanswered, answered = Unanswered(), 0
        while answered < len(prompts):
            try:
                found = next(running, None)
            except ClusterError as error:
                unanswered.note(given for given in assignments if given.rank.identity in error.blamed)
                try:
                    self.fleet.fence(error)
                except ClusterError as last:
                    told = unanswered.told(lambda share, row: prompts.texts[ranges[share].start + row])
                    last.args = (f"{last}{told}",)
                    raise
                assignments += begin(self._taken_over(assignments, version, unit))
                continue
            if found is None:
                raise TetrarchError(f"the engines ended without an answer to {len(prompts) - answered} prompts")
            given, answer = found
            first, part = _part(answer)
            _check_version(part, version)
            rows = given.answered(first, len(part))
            answered += len(rows)
            start = ranges[given.share].start + rows[0]
            self.made_by[start : start + len(rows)] = [given.engine] * len(rows)
            yield (given.share, rows[0]), self._whole(part, prompts, range(start, start + len(rows)))

    def _taken_over(self, assignments: list[Assignment], version: int, unit: int | None) -> list[Assignment]:
        """New assignments for the unanswered rows of engines that have been replaced, which `assignments` loses."""
        lost = self._lost(assignments)
        usable = self.fleet.usable(version)  # finds engines that have died meanwhile
        new: list[Assignment] = []
        for share, rows in [*lost, *self._lost(assignments)]:
            new += divided(share, rows, usable, unit, [*assignments, *new])
        return new

    def _lost(self, assignments: list[Assignment]) -> list[tuple[int, list[int]]]:
        """Share and rows of the assignments whose engines have been replaced; these assignments end."""
        found = []
        for given in assignments:
            if given.left and given.rank != self.engines.ranks[given.engine]:
                self.fleet.lost(given.engine, len(given.left))
                found.append((given.share, sorted(given.left)))
                given.left.clear()
        return found

    def _asked(self, prompts: Prompts) -> Prompts:
        """The fields of `prompts` that the engines read."""
        return prompts if self.environment else replace(prompts, texts=[""] * len(prompts), columns={})

    def _whole(self, rollouts: Rollouts | KeptPart, prompts: Prompts, rows: range) -> Rollouts | KeptPart:
        """The responses to these rows of `prompts`, with the fields that the engines were not sent, where they are at
        hand."""
        if self.environment or isinstance(rollouts, KeptPart):
            return rollouts
        own = prompts.select(rows)
        return replace(rollouts, prompts=own.texts, columns=own.columns)

    def connect(self, actor: RoleGroup[Actor]) -> None:
        """Let the actor meet the engines, before the first push."""
        self.fleet.connect(actor)

    def load(self, actor: RoleGroup[Actor], *, version: int) -> None:
        """Send the actor's weights to every engine as `version`."""
        self._wake("weights")
        self.fleet.load(actor, version)
        self._wake("kv_cache")

    def _wake(self, *parts: str) -> None:
        if self.sleeps:
            try:
                self.engines.call(RolloutEngine.wake, parts).result(self.deadlines.push_s)
            except ClusterError as error:
                self.fleet.fence(error)


def _part(answer: Any) -> tuple[int, Rollouts | KeptPart]:
    """What an engine has answered: the number of its first row, and the rows."""
    if isinstance(answer, Rollouts):
        return 0, answer
    first, rows = answer
    return first if isinstance(first, int) else first[0], rows if isinstance(first, int) else KeptPart(first[1], rows)


def _check_version(rollouts: Rollouts | KeptPart, version: int) -> None:
    others = sorted(set(rollouts.versions.tolist()) - {version})
    if others:
        raise TetrarchError(
            f"asked for samples of weights version {version}, got some of {others}; the engines are stale"
        )
