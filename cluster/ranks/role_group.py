"""The ranks of one role: call a method on each with its shard. Results stay where they were made.

```python
actor = RoleGroup.start("actor", Actor, [(setup,)] * 2, cluster.places("actor"), log_dir=logs, distributed=True)
critic = RoleGroup.start("critic", Critic, [(setup,)] * 2, cluster.places("critic"), log_dir=logs, distributed=True)
wait_all([actor.started, critic.started], deadline_s=900)   # they load side by side
logprobs, values = actor.map(Actor.logprobs, shards), critic.map(Critic.values, shards)
wait_all([logprobs, values], deadline_s=60)                 # ends at the first failure of any rank
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import ray

from cluster.ranks import calls, hangs
from cluster.ranks.calls import Call, Stream
from cluster.ranks.host_memory import kill_tree
from cluster.ranks.making import GrantedSlot, Making
from cluster.ranks.watch import STARTED, Rank
from cluster.ranks.worker import on_node

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
CHILDREN_S = 3.0
"""Seconds in which ranks must end the processes that their roles started; then the ranks are killed."""
KILL_S = 10.0
"""Seconds in which a node must kill ranks that hang."""
P = ParamSpec("P")


class RoleGroup(Generic[R]):
    """The ranks of one role: one process for each, with one object of the class `R` in it."""

    def __init__(self, making: Making, again: Callable[[Collection[int]], Sequence[GrantedSlot]] | None = None) -> None:
        """`again`: see `start`."""
        self.role = making.role
        self._making, self._again = making, again
        ranks, started = making.begin(dict.fromkeys(range(len(making.places)), 0))
        self.ranks: Sequence[Rank] = ranks
        self.started = started
        """The running construction of the role on every rank."""

    @classmethod
    def start(
        cls,
        role: str,
        factory: Callable[..., R],
        arguments: Sequence[tuple[Any, ...]],
        places: Sequence[GrantedSlot],
        *,
        log_dir: Path,
        environment: Mapping[str, str] | None = None,
        distributed: bool = False,
        replaceable: bool = False,
        inner: Callable[[], Sequence[tuple[Any, ...]]] | None = None,
        again: Callable[[Collection[int]], Sequence[GrantedSlot]] | None = None,
    ) -> Self:
        """Start a process for each place and build `factory(*arguments[rank])` in it. Returns at once.

        The driver's own calls wait in line behind the construction; a `Client` may be used only after `ready`.
        `factory` is imported in the worker, so it must stand at the top of a module (or be a class method there).
        `distributed` ranks get MASTER_ADDR and MASTER_PORT of a store that rank 0 keeps open. The death of a
        `replaceable` rank ends only the waits for itself: whoever calls it starts it again.
        `inner` gives the spans that the role has recorded in its process since it was last asked, for the timeline:
        the fields of `cluster.ranks.usage.InnerSpan`. `again` gives the places of all ranks when those of
        some numbers are started again, which may have others after a node was lost; None: they stay.
        """
        if len(arguments) != len(places):
            raise ValueError(f"{role}: {len(arguments)} argument tuples for {len(places)} ranks")
        source, shared = _importable(factory), dict(environment or {})
        spans = _importable(inner) if inner else None
        return cls(Making(role, source, arguments, places, log_dir, shared, distributed, replaceable, spans), again)

    def restart(self, numbers: Collection[int]) -> Call[None]:
        """End the ranks of these numbers, whatever they do, and start new ones in their places. Returns at once; later
        calls to a new rank wait in line behind its construction. NodeLost if one has no place any more.

        Ranks that meet in a process group can only be restarted all together.
        """
        if self._making.distributed and len(numbers) < len(self.ranks):
            raise ValueError(f"{self.role}: ranks {sorted(numbers)} cannot be restarted without their peers")
        lives = {number: self.ranks[number].identity.life + 1 for number in sorted(numbers)}
        _stop([self.ranks[number] for number in lives])
        if self._again is not None:
            self._making = replace(self._making, places=self._again(list(lives)))
        made, started = self._making.begin(lives)
        new = dict(zip(lives, made, strict=True))
        self.ranks = [new.get(number, rank) for number, rank in enumerate(self.ranks)]
        return started

    def end(self, numbers: Collection[int]) -> None:
        """End the ranks of these numbers, whatever they do, and wait for that; from any thread. None is replaced."""
        _stop([self.ranks[number] for number in numbers])

    def remake(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        """Change the arguments with which ranks are built that are started again."""
        self._making = replace(self._making, arguments=[change(own) for own in self._making.arguments])

    def check_alive(self, numbers: Collection[int]) -> None:
        """Raise RankFailure if one of the ranks of these numbers has died. Does not wait."""
        calls.check_alive([self.ranks[number] for number in numbers])

    def __len__(self) -> int:
        return len(self.ranks)

    def ready(self, deadline_s: float) -> None:
        """Wait until every rank has built its role."""
        calls.wait_all([self.started], deadline_s)

    def map(self, method: Callable[Concatenate[R, S, ...], T], shards: Sequence[Any], *common: Any) -> Call[T]:
        """Call `method(shard, *common)` on every rank with its own shard (a value, or a reference to one)."""
        return self.map_each(method, [(shard, *common) for shard in shards])

    def call(self, method: Callable[Concatenate[R, P], T], *arguments: P.args, **keywords: P.kwargs) -> Call[T]:
        """Call `method(*arguments)` on every rank."""
        if keywords:
            raise TypeError(f"{self.role}.{method.__name__}: pass {', '.join(keywords)} by position")
        return calls.submit(self.ranks, method.__name__, [arguments] * len(self.ranks))

    def map_each(self, method: Callable[Concatenate[R, ...], T], arguments: Sequence[tuple[Any, ...]]) -> Call[T]:
        """Call `method(*own)` on every rank with its own arguments (values, or references to them)."""
        if len(arguments) != len(self.ranks):
            raise ValueError(f"{self.role}.{method.__name__}: {len(arguments)} shards for {len(self.ranks)} ranks")
        return calls.submit(self.ranks, method.__name__, arguments)

    def stream(
        self,
        method: Callable[Concatenate[R, S, ...], Iterator[T]],
        shards: Sequence[Any],
        *common: Any,
        deadline_s: float,
    ) -> Iterator[tuple[int, T]]:
        """Call a generator method on every rank; yields (rank, item) as items come, from whichever rank."""
        if len(shards) != len(self.ranks):
            raise ValueError(f"{self.role}.{method.__name__}: {len(shards)} shards for {len(self.ranks)} ranks")
        running = self.streaming(deadline_s)
        for number, shard in enumerate(shards):
            running.begin(number, number, method, shard, *common)
        return running

    def streaming(self, deadline_s: float) -> GroupStream[R]:
        """Calls to single ranks, none of which has begun."""
        return GroupStream(self, Stream(deadline_s))

    def call_one(self, number: int, method: Callable[Concatenate[R, ...], T], *arguments: Any) -> Call[T]:
        """Call `method(*arguments)` on the rank of that number alone."""
        return calls.submit([self.ranks[number]], method.__name__, [arguments])

    def scatter(
        self, number: int, method: Callable[Concatenate[R, ...], Sequence[Any]], count: int, *arguments: Any
    ) -> tuple[Call[None], list[Any]]:
        """Call `method(*arguments)`, which returns `count` values, on the rank of that number alone. Returns at once:
        the call, and a reference to each value, which another group's calls may take before it is there."""
        return calls.scattered(self.ranks[number], method.__name__, count, arguments)

    def client(self, deadline_s: float, numbers: Collection[int] | None = None) -> Client:
        """A handle with which another role can call the ranks (only those of `numbers`) from its own process."""
        return Client(tuple(self.ranks if numbers is None else (self.ranks[n] for n in numbers)), deadline_s)

    def stop(self) -> None:
        """End every rank and the processes that it started. May be called twice, and while methods run."""
        _stop(self.ranks)


@dataclass(frozen=True, slots=True)
class GroupStream(Generic[R]):
    """Running calls of generator methods of single ranks of a group, read as one: see `cluster.ranks.calls.Stream`."""

    group: RoleGroup[R]
    calls: Stream

    def begin(
        self,
        key: Any,
        number: int,
        method: Callable[Concatenate[R, S, ...], Any],
        shard: S,
        *common: Any,
        pairs: bool = False,
    ) -> None:
        """Call `method(shard, *common)` on the rank of that number; its values come with `key`. `pairs`: see
        `Stream.begin`."""
        self.calls.begin(key, self.group.ranks[number], method.__name__, (shard, *common), pairs=pairs)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self

    def __next__(self) -> tuple[Any, Any]:
        return next(self.calls)


@dataclass(frozen=True, slots=True)
class Client:
    """One group as seen from another's process: methods by name, each wait bounded by `deadline_s`. May be pickled."""

    ranks: tuple[Rank, ...]
    deadline_s: float

    def __len__(self) -> int:
        return len(self.ranks)

    def submit(self, method: str, *arguments: Any) -> Call[Any]:
        """Start `method(*arguments)` on every rank; wait for the values with `.result(deadline_s)`."""
        return calls.submit(self.ranks, method, [arguments] * len(self.ranks))

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call `method(*arguments)` on every rank and wait for the values."""
        return self.submit(method, *arguments).result(self.deadline_s)


def stop_all() -> None:
    """End every rank that this process has started."""
    _stop(STARTED.ranks)


def _stop(ranks: Sequence[Rank]) -> None:
    """End ranks, also those that do not answer, which Ray cannot end if their processes are stopped."""
    STARTED.remove(ranks)
    ending = {rank.worker.end_children.remote(): rank for rank in ranks}
    silent = ray.wait(list(ending), num_returns=len(ending), timeout=CHILDREN_S)[1] if ending else []
    for rank in ranks:
        ray.kill(rank.worker)
    _kill([ending[answer] for answer in silent])


def _kill(ranks: Sequence[Rank]) -> None:
    """Let the nodes' systems kill ranks, so that what they hold is free again."""
    if not ranks:
        return
    born = hangs.answered([rank.pid for rank in ranks], 0.0)
    here, killing = ray.get_runtime_context().get_node_id(), []
    for rank in ranks:
        if rank.pid in born and rank.node_id == here:
            kill_tree(born[rank.pid])
        elif rank.pid in born:
            killing.append(on_node(kill_tree, rank.node_id).remote(rank.pid))
    if killing:
        ray.wait(killing, num_returns=len(killing), timeout=KILL_S)


def _importable(factory: Callable[..., Any]) -> tuple[str, str]:
    """(module, qualified name), so that the worker imports the class instead of unpickling it."""
    name = factory.__qualname__
    if "<" in name or factory.__module__ == "__main__":
        where = f"{factory.__module__}.{name}"
        raise ValueError(f"{where} cannot be imported by a worker; define it at the top of a module")
    return factory.__module__, name
