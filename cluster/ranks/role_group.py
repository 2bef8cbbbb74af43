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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import ray

from cluster.placement.plan import Slot
from cluster.ranks import calls
from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.watch import STARTED, Rank
from cluster.ranks.worker import remote_worker

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
CHILDREN_S = 3.0
"""Seconds in which ranks must end the processes that their roles started; then the ranks are killed."""
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class GrantedSlot:
    """A slot of the plan on a real node."""

    slot: Slot
    node: str
    """Name of the real node."""
    node_id: str
    """Ray's id of the node."""
    strategy: Any
    """Ray's scheduling strategy that places a worker there."""
    devices: tuple[str, ...] = ()
    """Names of its GPUs on the node, for CUDA_VISIBLE_DEVICES."""


class RoleGroup(Generic[R]):
    """The ranks of one role: one process for each, with one object of the class `R` in it."""

    def __init__(self, role: str, ranks: Sequence[Rank], started: Call[None]) -> None:
        self.role = role
        self.ranks = ranks
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
    ) -> Self:
        """Start a process for each place and build `factory(*arguments[rank])` in it. Returns at once.

        The driver's own calls wait in line behind the construction; a `Client` may be used only after `ready`.
        `factory` is imported in the worker, so it must stand at the top of a module (or be a class method there).
        `distributed` ranks get MASTER_ADDR and MASTER_PORT of a store that rank 0 keeps open.
        """
        if len(arguments) != len(places):
            raise ValueError(f"{role}: {len(arguments)} argument tuples for {len(places)} ranks")
        source = _importable(factory)
        shared = dict(environment or {})
        ranks = [_start_worker(role, place, len(places), log_dir, shared) for place in places]
        STARTED.add(ranks)
        meeting = ranks[0].worker.rendezvous.remote() if distributed else None
        answers = [
            rank.worker.construct.remote(source, own, meeting) for rank, own in zip(ranks, arguments, strict=True)
        ]
        receipts, refs = [receipt for receipt, _ in answers], [ref for _, ref in answers]
        return cls(role, ranks, Call("construct", ranks, receipts, refs))

    def __len__(self) -> int:
        return len(self.ranks)

    def ready(self, deadline_s: float) -> None:
        """Wait until every rank has built its role."""
        calls.wait_all([self.started], deadline_s)

    def map(self, method: Callable[Concatenate[R, S, ...], T], shards: Sequence[Any], *common: Any) -> Call[T]:
        """Call `method(shard, *common)` on every rank with its own shard (a value, or a reference to one)."""
        if len(shards) != len(self.ranks):
            raise ValueError(f"{self.role}.{method.__name__}: {len(shards)} shards for {len(self.ranks)} ranks")
        return calls.submit(self.ranks, method.__name__, [(shard, *common) for shard in shards])

    def call(self, method: Callable[Concatenate[R, P], T], *arguments: P.args, **keywords: P.kwargs) -> Call[T]:
        """Call `method(*arguments)` on every rank."""
        if keywords:
            raise TypeError(f"{self.role}.{method.__name__}: pass {', '.join(keywords)} by position")
        return calls.submit(self.ranks, method.__name__, [arguments] * len(self.ranks))

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
        return calls.stream(self.ranks, method.__name__, [(shard, *common) for shard in shards], deadline_s)

    def client(self, deadline_s: float) -> Client:
        """A handle with which another role can call the ranks from its own process."""
        return Client(tuple(self.ranks), deadline_s)

    def stop(self) -> None:
        """End every rank and the processes that it started. May be called twice, and while methods run."""
        _stop(self.ranks)


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
    STARTED.remove(ranks)
    ending = [rank.worker.end_children.remote() for rank in ranks]
    if ending:
        ray.wait(ending, num_returns=len(ending), timeout=CHILDREN_S)
    for rank in ranks:
        ray.kill(rank.worker)


def _start_worker(role: str, place: GrantedSlot, size: int, log_dir: Path, environment: Mapping[str, str]) -> Rank:
    slot = place.slot
    log = log_dir.absolute() / f"{role}-{slot.rank}.log"
    identity = Identity(role, slot.rank, place.node, str(log))
    own = {
        "RANK": str(slot.rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",  # a rank sees only its own GPUs, so the first one is always its own
        "OMP_NUM_THREADS": str(slot.threads),
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of a failed call we read the receipt, not the value
    }
    if place.devices and "CUDA_VISIBLE_DEVICES" not in environment:
        # The node's bundle holds the cards; the plan says which are this rank's. If Ray were asked for fractions of
        # them, it could
        # give any card of the bundle, and might find no room for the last engine among the fractions.
        own["CUDA_VISIBLE_DEVICES"] = ",".join(place.devices)
    options = {"num_cpus": slot.cpus, "num_gpus": 0, "scheduling_strategy": place.strategy}
    worker = remote_worker().options(**options).remote(identity, {**environment, **own})
    return Rank(identity, worker, worker.watch.remote())


def _importable(factory: Callable[..., Any]) -> tuple[str, str]:
    """(module, qualified name), so that the worker imports the class instead of unpickling it."""
    name = factory.__qualname__
    if "<" in name or factory.__module__ == "__main__":
        where = f"{factory.__module__}.{name}"
        raise ValueError(f"{where} cannot be imported by a worker; define it at the top of a module")
    return factory.__module__, name
