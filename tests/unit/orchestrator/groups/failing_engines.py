"""A served policy whose engines generate numbers, and fail when they are told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.config import Deadlines
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.serving_roles import ServedPolicy
from roles.serving_engine import EngineWork, NewTokens, ServingEngine, WantedResponse

PROMPT = [7, 7]
LONG_S, NOW_S = 100.0, 0.0


@dataclass(eq=False)
class Rank:
    """An engine: its tokens are their places, so that one that goes on in another place shows."""

    identity: Identity
    folder: str
    work: dict[str, WantedResponse] = field(default_factory=dict)

    slices: list[float] = field(default_factory=list)

    def advance(self, work: EngineWork, slice_s: float) -> list[NewTokens]:
        self.slices.append(slice_s)
        for name in work.dropped:
            del self.work[name]
        self.work |= {one.name: one for one in work.wanted}
        return [self._grow(one) for one in list(self.work.values())]

    def _grow(self, one: WantedResponse) -> NewTokens:
        token = len(one.token_ids)
        self.work[one.name] = replace(one, token_ids=[*one.token_ids, token], begun=one.begun + 1)
        if one.begun + 1 < one.max_tokens:
            return NewTokens(one.name, [token], None)
        del self.work[one.name]
        return NewTokens(one.name, [token], "length")


@dataclass
class Answer:
    """A call that has been answered, has failed, or never ends."""

    value: Any = None
    error: ClusterError | None = None
    hangs: bool = False
    receipts: tuple[()] = ()

    @property
    def over(self) -> bool:
        return not self.hangs

    def result(self, deadline_s: float, *, since: float | None = None) -> Any:
        if self.error:
            raise self.error
        return [self.value]


@dataclass
class Engines:
    """Engines that fail when they are told to."""

    size: int = 2
    role: str = "rollout"
    slow: bool = False
    """Whether no restart is over unless it is waited for."""
    fails: dict[int, list[Callable[[Identity], Answer]]] = field(default_factory=dict)
    """Engine → what becomes of its next calls."""
    log: list[str] = field(default_factory=list)
    folder: str = "first"
    open_rounds: bool = False
    """Whether no round is over."""
    dead: set[int] = field(default_factory=set)
    """Engines that have died and were not noticed."""
    may_end: threading.Event = field(default_factory=threading.Event)
    """While it is not set, an engine that is to end does not."""
    deadly: dict[str, int] = field(default_factory=dict)
    """Prompt → number of tokens of its response when the engine dies."""

    def __post_init__(self) -> None:
        self.may_end.set()
        self.ranks = [Rank(Identity("rollout", n, "node", "log"), self.folder) for n in range(self.size)]

    def __len__(self) -> int:
        return self.size

    def check_alive(self, numbers: list[int]) -> None:
        for number in self.dead & set(numbers):
            who = self.ranks[number].identity
            raise Death(f"{who} died in a call that nobody waits for: signal 9", who=who)

    def end(self, numbers: list[int]) -> None:
        self.log.append(f"end {numbers}")
        assert self.may_end.wait(60)

    def restart(self, numbers: list[int]) -> Any:
        for number in numbers:
            self.log.append(f"restart {number} from {self.folder}")
            old = self.ranks[number].identity
            self.dead.discard(number)
            self.ranks[number] = Rank(replace(old, life=old.life + 1), self.folder)
        return Answer(hangs=self.slow)

    def remake(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        @dataclass
        class Setup:
            model_path: str

        self.folder = change((Setup(self.folder),))[0].model_path

    def call_one(self, number: int, method: Any, *arguments: Any) -> Answer:
        rank = self.ranks[number]
        if planned := self.fails.get(number):
            return planned.pop(0)(rank.identity)
        if method is ServingEngine.reload:
            self.log.append(f"reload {number} {arguments[0]}")
            rank.folder, dropped = arguments
            rank.work = {name: one for name, one in rank.work.items() if name not in dropped}
            return Answer(error=RankFailure("it is generating", who=rank.identity) if rank.work else None)
        for one in [*rank.work.values(), *arguments[0].wanted]:
            if one.begun == self.deadly.get(letter_of(one)) and one.name not in arguments[0].dropped:
                return dies(rank.identity)
        return Answer(rank.advance(*arguments), hangs=self.open_rounds)


def letter_of(one: WantedResponse) -> str:
    return chr(one.token_ids[: len(PROMPT) + 1][-1])


def dies(who: Identity) -> Answer:
    return Answer(error=Death(f"{who} died in advance: signal 9", who=who))


def hangs(who: Identity) -> Answer:
    return Answer(error=DeadlineExceeded("rollout.advance did not end within 60 s:", [who]), hangs=True)


def refuses(who: Identity) -> Answer:
    return Answer(error=RankFailure(f"{who} raised KeyError in reload", who=who, exception="builtins.KeyError"))


@dataclass
class World:
    engines: Engines
    policy: ServedPolicy
    told: list[str]
    texts: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)

    def turn(self, *wanted: str, dropped: tuple[str, ...] = (), tokens: int = 4) -> None:
        asked = [WantedResponse(name, [*PROMPT, ord(name[0])], tokens, 1.0, 1.0, seed=5) for name in wanted]
        for new in self.policy.advance(asked, dropped):
            self.texts.setdefault(new.name, []).extend(new.token_ids)
            if new.finish:
                self.ends[new.name] = new.finish

    def turn_until(self, done: Callable[[], bool]) -> None:
        """An engine that hangs is ended in another thread."""
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end
            self.turn()


def world(allowed: int = 6, stall_s: float = LONG_S, **engines: Any) -> World:
    group, told = Engines(**engines), list[str]()
    recovery = Recovery(RecoveryConfig(engine_failures_per_hour=allowed), told.append, has_steps=False)
    made: Any = group
    return World(group, ServedPolicy(made, Deadlines(), recovery, stall_s), told)


WHOLE = [3, 4, 5, 6]
