"""The failures that a run survives: errors flow in; permission to go on, lines for the user and counts flow out."""

from __future__ import annotations

import math
import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.capacity.shortage import WAIT_TOLD_S
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.role_group import RoleGroup
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.loaded_folders import LoadedFolders

T = TypeVar("T")
WINDOW_S = 3600.0
TOLD_CHARACTERS = 160
"""Characters of an error that are told when the run survives it."""
NO_RECOVERY = RecoveryConfig(engine_failures_per_hour=0, frozen_failures_per_hour=0, trained_failures_per_hour=0)
"""The first failure ends the run."""
ON_PURPOSE = "roles.errors."
"""Module of the exceptions that a role raises on purpose: another process would raise them again."""


TellUser = Callable[[str], None]
"""Shows the user a line."""


ShowStarting = Callable[[Mapping[str, str]], None]
"""Shows what each role is doing while it starts (role → words); an empty mapping: no role starts any more."""


def untold(text: str) -> None:
    """Stands for a display that there is not."""


def unshown(doing: Mapping[str, str]) -> None:
    """Stands for a display that there is not."""


def waits_for_room(tell: TellUser, starting: ShowStarting) -> TellUser:
    """Shows that Ray starts; then what it is told: of what the cluster is short. That it waits for room, or for what is
    free, is also told to stay, at once and then every `WAIT_TOLD_S` seconds."""
    starting({"Ray": "starting, or giving its resources"})
    told = dict[str, float]()

    def show(lacks: str) -> None:
        starting({"Ray": lacks})
        waits_for, now = lacks.partition(":")[0], time.monotonic()
        if now - told.get(waits_for, -math.inf) >= WAIT_TOLD_S:
            told[waits_for] = now
            tell(lacks)

    return show


@dataclass(slots=True)
class Recovery:
    """The failures of a run that it survives."""

    config: RecoveryConfig = NO_RECOVERY
    tell: TellUser = untold
    clock: Callable[[], float] = time.monotonic
    start_s: float = 900.0
    """Seconds in which a group must start."""
    has_steps: bool = True
    """Whether the run has steps, in each of which one deadline may pass. What serves has none."""
    frozen: dict[str, RoleGroup[Any]] = field(default_factory=dict)
    """Role → group, for the groups that hold no training state, other than the engines."""
    folders: LoadedFolders = field(default_factory=LoadedFolders)
    """Those that groups load when they are started again."""
    waited_for: set[str] = field(default_factory=set)
    """Roles that answer nothing until they are started again."""
    totals: Counter[str] = field(default_factory=Counter)
    """The counts of all steps."""
    _failures: dict[str, deque[float]] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _late: set[str] = field(default_factory=set)
    """Keys for which a deadline has passed in the current step."""

    def survive(self, key: str, error: ClusterError, undecided: int = 0) -> None:
        """Count a failure; raises `error` if the run may not survive it.

        Args:
            key: the key of `RecoveryConfig` that says how many failures within an hour are survived.
            undecided: so many more are survived: failures that may be forgiven, this one included.
        """
        allowed: int = getattr(self.config, key)
        now, recent = self.clock(), self._failures.setdefault(key, deque())
        while recent and now - recent[0] > WINDOW_S:
            recent.popleft()
        on_purpose = isinstance(error, RankFailure) and error.exception.startswith(ON_PURPOSE)
        if not allowed or on_purpose:
            raise error
        if len(recent) >= allowed + undecided:
            spent = f"it is the failure number {len(recent) + 1} within an hour, and recovery.{key}={allowed}"
            error.args = (f"{error}\nThe run ends: {spent}",)
            raise error
        if isinstance(error, DeadlineExceeded):  # hangs are too rare within an hour for the budget to count them
            if self.has_steps and key in self._late:
                error.args = (f"{error}\nThe run ends: it is the second deadline that passed in the same step",)
                raise error
            self._late.add(key)
        recent.append(now)

    def forgive(self, key: str) -> None:
        """Count one failure fewer: the one that led here was not that of the ranks."""
        if self._failures.get(key):
            self._failures[key].pop()
        self._late.discard(key)

    def revive(self, error: ClusterError) -> set[str]:
        """Start the frozen groups again of which `error` blames ranks, and wait for them; returns their roles.

        Raises `error` if it blames others too, or if the run may not survive it.
        """
        roles = {who.role for who in error.blamed}
        if not roles or not roles <= self.frozen.keys():
            raise error
        self.survive("frozen_failures_per_hour", error)
        self.tell(f"{', '.join(sorted(roles))}: started again, since {brief(error)}")
        self.count("healing/frozen_restarts", len(roles))
        began = self.clock()
        with self.waiting_for(*roles):
            for started in [self.frozen[role].restart(range(len(self.frozen[role]))) for role in sorted(roles)]:
                try:
                    started.result(self.start_s)
                except ClusterError as again:
                    roles |= self.revive(again)
        self.folders.check(*sorted(roles))
        self.tell(f"{', '.join(sorted(roles))}: back after {self.clock() - began:.1f} s")
        return roles

    def repeated(self, call: Callable[[], T]) -> T:
        """The result of a call to frozen groups, which is repeated if a rank fails."""
        while True:
            try:
                return call()
            except ClusterError as error:
                self.revive(error)

    @contextmanager
    def waiting_for(self, *roles: str) -> Iterator[None]:
        """Context in which the roles answer nothing."""
        self.waited_for.update(roles)
        try:
            yield
        finally:
            self.waited_for.difference_update(roles)

    def count(self, metric: str, more: int) -> None:
        """Add to the count of a metric of `orchestrator.metrics` for the current step."""
        self._counts[metric] += more
        self.totals[metric] += more

    def drain(self) -> dict[str, float]:
        """The counts since the last drain, at the end of each step; metrics that were not counted are missing."""
        self._late.clear()
        counts, self._counts = self._counts, Counter()
        return {metric: float(count) for metric, count in counts.items()}


def brief(error: ClusterError) -> str:
    """The first sentence of an error, shortened."""
    return textwrap.shorten(
        str(error).splitlines()[0].split(". ")[0].removesuffix(":"), TOLD_CHARACTERS, placeholder=" …"
    )
