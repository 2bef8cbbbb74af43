"""The rollout engines, of which some may be down. An engine that fails is ended, started again in its place and given
the current weights; the others go on meanwhile.

Errors of calls flow in; the numbers of the engines that can be used flow out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config import Deadlines
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.role_group import RoleGroup
from orchestrator.groups.recovery import Recovery, brief
from roles.actor import Actor

BUDGET = "engine_failures_per_hour"
"""Key of the section `recovery`."""
MARGIN_S = 10.0
"""Seconds that a push may take beyond its deadline, so that an engine's own wait ends first and names it."""


@dataclass(slots=True)
class Restart:
    """An engine that is started again."""

    who: Identity
    cause: str
    since: float
    started: Call[None]
    """The running construction of the engine."""
    prompts: int = 0
    """Number of prompts that it left without an answer."""


class EngineFleet:
    """Engines with the same weights, and the restarts of those that failed."""

    def __init__(
        self,
        group: RoleGroup[Any],
        deadlines: Deadlines,
        recovery: Recovery,
        *,
        sleeps: bool,
        undecided: Callable[[Collection[int]], int] = lambda failed: 0,
    ):
        """
        Args:
            sleeps: whether other roles need the engines' memory between the calls, so that a restart is waited for.
            undecided: told the numbers of engines that fail, before they are started again; says how many failures may
                be forgiven, as `Recovery.survive` is told.
        """
        self._group = group
        self._deadlines = deadlines
        self._recovery = recovery
        self._sleeps = sleeps
        self._undecided = undecided
        self._actor: RoleGroup[Actor] | None = None
        self._down: dict[int, Restart] = {}
        """Number of an engine → its restart, until it is built."""
        self._fresh: dict[int, Restart] = {}
        """The same of engines that are built and still have the weights of the model's folder."""
        self.ending = set[int]()
        """Engines that are being ended elsewhere, and are no more to be asked; `fence` is told of them then."""
        self._connected: Sequence[Any] = group.ranks
        """The ranks to which the actor's weights are sent."""

    def connect(self, actor: RoleGroup[Actor]) -> None:
        """Let the actor meet all engines, which are up, before the first push."""
        self._actor, self._connected = actor, ()
        self._meet(range(len(self._group)), self._deadlines.push_s)

    def usable(self, version: int) -> list[int]:
        """Numbers of the engines that have the weights of `version`. Waits for a restart if there are none, or if
        engines sleep."""
        self._fence_the_dead()
        self._admit(version)
        while (behind := self._behind(version)) and (self._sleeps or len(behind) == len(self._group)):
            with self._recovery.waiting_for(self._group.role):
                self._admit(version, wait=True)
            if version and self._fresh:  # the actor may still have scoring passes to do
                self._push(sorted(self._fresh), version, self._deadlines.score_s + self._deadlines.push_s)
        return [number for number in range(len(self._group)) if number not in behind]

    def load(self, actor: RoleGroup[Actor], version: int) -> None:
        """Send the actor's weights as `version` to every engine that is up; at least one is."""
        self._actor = actor
        self._fence_the_dead()
        self._admit(version, wait=self._sleeps)
        while not (up := self._up()) or not self._push(up, version, self._deadlines.push_s):
            self._admit(version, wait=True)

    def fence(self, error: ClusterError, *, also: Collection[int] = ()) -> None:
        """End the engines that `error` blames, and those of `also`, and start them again. Raises `error` if it blames
        others too, or if the run may not survive it. What it says of an engine that has been replaced is old."""
        engines = [who for who in error.blamed if who.role == self._group.role]
        if not engines or len(engines) < len(error.blamed):
            raise error
        failed = {who.rank for who in engines if who == self._group.ranks[who.rank].identity}
        if not failed:
            return
        self._recovery.survive(BUDGET, error, self._undecided(failed))
        for number in sorted({*failed, *also}):
            who = self._group.ranks[number].identity
            cause = _cause(error, who) if number in failed else f"got a part of a push, since {brief(error)}"
            self._recovery.tell(f"{who} is started again: it {cause}")
            self._fresh.pop(number, None)
            self._down[number] = Restart(who, cause, time.monotonic(), self._group.restart([number]))
            self._recovery.count("healing/engine_restarts", 1)

    def replace(self, numbers: Collection[int], why: str, prompts: int) -> None:
        """End engines that answer wrongly and start them again; ClusterError if the run may not survive that.

        `why`: in words that follow "it"; `prompts`: the number of their prompts, which others are given.
        """
        blamed = [self._group.ranks[number].identity for number in sorted(numbers)]
        for who in blamed:
            self.fence(RankFailure(f"{who} {why}", who=who))
        self._down[blamed[0].rank].prompts += prompts
        self._recovery.count("healing/prompts_moved", prompts)

    def lost(self, number: int, prompts: int) -> None:
        """Note that an engine has left so many prompts without an answer."""
        restart = self._down.get(number) or self._fresh.get(number)
        if restart is not None:
            restart.prompts += prompts
        self._recovery.count("healing/prompts_moved", prompts)

    def _up(self) -> list[int]:
        return [number for number in range(len(self._group)) if number not in self._down.keys() | self.ending]

    def _behind(self, version: int) -> set[int]:
        """Engines that do not have the weights of `version`; version 0 is in the folder."""
        return {*self._down, *self.ending, *(self._fresh if version else ())}

    def _fence_the_dead(self) -> None:
        """Find the engines that have died while nobody called them."""
        while up := self._up():
            try:
                return self._group.check_alive(up)
            except ClusterError as error:
                self.fence(error)

    def _admit(self, version: int, *, wait: bool = False) -> None:
        """Take in the engines that have been built; with `wait` all of them."""
        for number, restart in list(self._down.items()):
            left = self._deadlines.start_s - (time.monotonic() - restart.since)
            if not wait and left > 0 and not restart.started.over:
                continue
            try:
                restart.started.result(max(left, 0.0))
            except ClusterError as error:
                self.fence(error)
                continue
            self._fresh[number] = self._down.pop(number)
            if not version:
                self._recovery.folders.check(self._group.role)
                self._welcome([number], version)

    def _push(self, numbers: Collection[int], version: int, deadline_s: float) -> bool:
        """Send the weights to these engines. If it breaks off, they have parts of them: all are started again."""
        assert self._actor is not None, "connect comes first"
        try:
            self._meet(numbers, deadline_s)
            self._actor.call(Actor.push, version).result(deadline_s + MARGIN_S)
        except ClusterError as error:
            self.fence(error, also=numbers)
            return False
        self._welcome(numbers, version)
        return True

    def _meet(self, numbers: Iterable[int], deadline_s: float) -> None:
        """Let the actor push to these engines, and no others, from now on."""
        numbers = list(numbers)
        ranks = [self._group.ranks[number] for number in numbers]
        if list(self._connected) != ranks:
            assert self._actor is not None
            self._connected = ()
            client = self._group.client(self._deadlines.push_s, numbers)
            self._actor.call(Actor.connect, client).result(deadline_s + MARGIN_S)
            self._connected = ranks

    def _welcome(self, numbers: Iterable[int], version: int) -> None:
        """Tell of the engines that can be used again."""
        for number in numbers:
            restart = self._fresh.pop(number, None)
            if restart is not None:
                seconds = time.monotonic() - restart.since
                weights = f" with weights of version {version}" if self._actor else ""
                self._recovery.tell(
                    f"{restart.who} is back after {seconds:.1f} s{weights}: it {restart.cause}; prompts that were "
                    f"moved: {restart.prompts}"
                )


def _cause(error: ClusterError, who: Identity) -> str:
    """The error in words that follow "it"."""
    told = brief(error)
    return f"was late: {told}" if isinstance(error, DeadlineExceeded) else told.removeprefix(f"{who} ")
