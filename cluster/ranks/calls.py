"""Calls to ranks, and waiting for their results. Every wait has a deadline and ends at the first failure of any rank.

`RoleGroup` calls ranks from the driver; `Client` calls them from inside another role's process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from cluster.errors import ClusterError, DeadlineExceeded
from cluster.ranks import failures, usage
from cluster.ranks.hangs import answered, report, silent_of
from cluster.ranks.identity import Identity
from cluster.ranks.usage import WAITS, CallOrigin, InnerSpan
from cluster.ranks.watch import STARTED, Rank

T = TypeVar("T")
Waiting = dict[Any, tuple[Rank, str]]
"""Reference → the rank and the method whose result it is."""

GATHER_S = 1e-5
"""Seconds that a look at one reference takes."""
GRACE_S = 3.0
"""Seconds to wait for other failures after one that may be a consequence, to find the cause."""
IDLE_POLL_S = 0.2
CONTROL_S = 20.0
"""Seconds in which a rank must answer a question that needs no work, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A running call of a method on the ranks of one group."""

    method: str
    ranks: Sequence[Rank]
    receipts: list[Any]
    """References to each rank's receipt: None, or its failure."""
    refs: list[Any]
    """References to each rank's value in the object store, which another group's calls may take before it is there."""

    @classmethod
    def of(cls, method: str, ranks: Sequence[Rank], answers: Sequence[tuple[Any, Any]]) -> Self:
        """The call whose (receipt, value) each rank has given, as references."""
        return cls(method, ranks, [receipt for receipt, _ in answers], [ref for _, ref in answers])

    @property
    def over(self) -> bool:
        """Whether every rank has answered or failed."""
        ready, _ = ray.wait(self.receipts, num_returns=len(self.receipts), timeout=0, fetch_local=False)
        return len(ready) == len(self.receipts)

    def without(self, gone: Collection[Identity]) -> Call[T]:
        """The same call of the other ranks alone."""
        return self.of_ranks([number for number, rank in enumerate(self.ranks) if rank.identity not in gone])

    def of_ranks(self, numbers: Sequence[int]) -> Call[T]:
        """The same call of the ranks of these numbers alone."""
        ranks, receipts, refs = ([of[number] for number in numbers] for of in (self.ranks, self.receipts, self.refs))
        return Call(self.method, ranks, receipts, refs)

    def result(self, deadline_s: float, *, since: float | None = None) -> list[T]:
        """Wait for the values, and return them by rank. `since`: see `wait_all`."""
        wait_all([self], deadline_s, since=since)
        return [_fetch(rank, self.method, ref, deadline_s) for rank, ref in zip(self.ranks, self.refs, strict=True)]


def stored(values: Sequence[Any]) -> list[Any]:
    """References to `values` in the object store, which several calls may take as their arguments."""
    return [ray.put(value) for value in values]


def scattered(rank: Rank, method: str, count: int, arguments: tuple[Any, ...]) -> tuple[Call[None], list[Any]]:
    """Call `method`, which returns `count` values, on one rank. Returns at once: the call, and a reference to each."""
    asked = CallOrigin(time.time(), usage.caller)
    receipt, *parts = rank.worker.scatter.options(num_returns=1 + count).remote(asked, method, *arguments)
    return Call(method, [rank], [receipt], [receipt]), parts


def submit(ranks: Sequence[Rank], method: str, arguments: Sequence[tuple[Any, ...]]) -> Call[Any]:
    """Call `method` on every rank with its own arguments; returns at once."""
    asked = CallOrigin(time.time(), usage.caller)
    answers = [rank.worker.run.remote(asked, method, *own) for rank, own in zip(ranks, arguments, strict=True)]
    return Call.of(method, ranks, answers)


def wait_all(
    calls: Sequence[Call[Any]],
    deadline_s: float,
    meanwhile: Callable[[], None] | None = None,
    every_s: float = 2.0,
    *,
    since: float | None = None,
) -> None:
    """Wait for calls of any groups; call `meanwhile` every `every_s` seconds. Raises RankFailure at the first failure,
    DeadlineExceeded after `deadline_s`.

    `since`: when these seconds began to count, of `time.monotonic`; None: now.
    """
    until = (time.monotonic() if since is None else since) + deadline_s
    waiting: Waiting = {
        receipt: (rank, call.method) for call in calls for rank, receipt in zip(call.ranks, call.receipts, strict=True)
    }
    with _told(waiting) as told:
        while waiting:
            if meanwhile is not None:
                _go_on_until_ready(waiting, until, meanwhile, every_s)
            _next(waiting, until, deadline_s)
            # Others that come while all are looked at, so that the work is linear in their number however they come.
            every = list(waiting)
            ready, _ = ray.wait(every, num_returns=len(every), timeout=len(every) * GATHER_S, fetch_local=False)
            for receipt in ready:
                rank, method = waiting.pop(receipt)
                _raise_failure(rank, method, receipt, waiting)
                told["last"] = rank.identity.name


def _go_on_until_ready(waiting: Waiting, until: float, meanwhile: Callable[[], None], every_s: float) -> None:
    """Call `meanwhile` again and again, until a call has ended, a rank has died, or the time is over."""
    watched = [*waiting, *(rank.sentinel for rank in STARTED.watched)]
    while (left := until - time.monotonic()) > 0:
        if ray.wait(watched, num_returns=1, timeout=min(every_s, left), fetch_local=False)[0]:
            return
        meanwhile()


def wait_any(calls: Sequence[Call[Any]], within_s: float) -> None:
    """Wait until one of the calls has been answered or has failed, at most `within_s` seconds."""
    receipts = [receipt for call in calls for receipt in call.receipts]
    if receipts:
        ray.wait(receipts, num_returns=1, timeout=within_s, fetch_local=False)


class Stream:
    """Running calls of generator methods, read as one: yields (key, value) as values come, from whichever call.

    More calls may begin while it is read. An error ends the calls of the ranks that it blames; after it, the others
    can still be read.
    """

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: the longest wait for all values, counted from the latest `begin`."""
        self._deadline_s = deadline_s
        self._until = 0.0
        self._waiting: Waiting = {}
        self._keys: dict[Any, Any] = {}
        self._pairs: set[Any] = set()

    def begin(self, key: Any, rank: Rank, method: str, arguments: tuple[Any, ...], *, pairs: bool = False) -> None:
        """Call `method` on a rank; it starts when earlier calls have ended. A method that is no generator yields one
        answer. `pairs`: after each value comes one that stays where it is; both are an item, (value, reference)."""
        self._until = time.monotonic() + self._deadline_s
        asked = CallOrigin(time.time(), usage.caller)
        items = rank.worker.stream.options(num_returns="streaming").remote(asked, method, *arguments)
        self._waiting[items], self._keys[items] = (rank, method), key
        if pairs:
            self._pairs.add(items)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Any, Any]:
        while self._waiting:
            try:
                with _told(self._waiting) as told:
                    items = _next(self._waiting, self._until, self._deadline_s)
                    rank, method = self._waiting[items]
                    told["last"] = rank.identity.name
                value = _fetch(rank, method, self._following(items), self._deadline_s)
                if items in self._pairs:
                    value = value, self._following(items)
                return self._keys[items], value
            except StopIteration:
                del self._waiting[items]
            except ClusterError as error:
                self._waiting = {i: w for i, w in self._waiting.items() if w[0].identity not in error.blamed}
                raise
        raise StopIteration

    def _following(self, items: Any) -> Any:
        """Reference to the next value of a call."""
        rank, method = self._waiting[items]
        _raise_failure(rank, method, next(items), self._waiting)
        return next(items)


def ask(ranks: Sequence[Rank], question: str) -> list[Any]:
    """Have every worker answer a control question (`status`, `usage`), also while a method runs. None stands for the
    answer of a replaceable rank that is dead or silent."""
    answers = [getattr(rank.worker, question).remote() for rank in ranks]
    spare = {answer for rank, answer in zip(ranks, answers, strict=True) if rank in STARTED.replaceable}
    needed = [answer for answer in answers if answer not in spare]
    if silent := silent_of(needed, CONTROL_S):
        late = [ranks[answers.index(answer)] for answer in silent]
        names, (_, told) = ", ".join(str(rank.identity) for rank in late), report(dict.fromkeys(late, question))
        raise DeadlineExceeded(
            f"no answer within {CONTROL_S:g} s to a question that needs no work ({question}): {names}\n{told}",
            [rank.identity for rank in late],
        )
    for rank, answer in zip(ranks, answers, strict=True):
        if answer not in spare:
            _raise_failure(rank, question, answer, {})
    found = answered(spare, CONTROL_S)
    return [found.get(answer) if answer in spare else ray.get(answer) for answer in answers]


def check_alive(ranks: Sequence[Rank]) -> None:
    """Raise RankFailure if one of `ranks` has died. Does not wait."""
    sentinels = {rank.sentinel: rank for rank in ranks}
    dead, _ = ray.wait(list(sentinels), num_returns=1, timeout=0, fetch_local=False)
    for sentinel in dead:
        _raise_failure(sentinels[sentinel], _method_of(sentinels[sentinel], {}), sentinel, {})


def become_idle(ranks: Sequence[Rank], within_s: float) -> bool:
    """Whether none of `ranks` runs a method any more; waits at most `within_s` seconds."""
    until = time.monotonic() + within_s
    while any(status.busy for status in ask(ranks, "status")):
        if time.monotonic() > until:
            return False
        time.sleep(IDLE_POLL_S)
    return True


def _fetch(rank: Rank, method: str, ref: Any, deadline_s: float) -> Any:
    """Fetch the value of a call that has finished into this process."""
    try:
        return ray.get(ref, timeout=deadline_s)
    except GetTimeoutError:
        raise DeadlineExceeded(
            f"{rank.identity} answered {method}, but its value did not arrive within {deadline_s:g} s", [rank.identity]
        ) from None
    except RayError as error:
        raise failures.from_ray(rank.identity, method, error) from None


@contextmanager
def _told(waiting: Waiting) -> Iterator[dict[str, str]]:
    """Context of a wait, which `WAITS` tells of afterwards; `last`: the rank that answered last."""
    roles = ", ".join(dict.fromkeys(rank.identity.role for rank, _ in waiting.values()))
    facts, began = dict[str, str](), time.time()
    try:
        yield facts
    finally:
        WAITS.append(InnerSpan(began, time.time(), f"waits for {roles}", threading.get_ident(), facts))


def _next(waiting: Waiting, until: float, deadline_s: float) -> Any:
    """Wait for a reference that is ready; raises if a rank of any group dies or the time is over."""
    sentinels = {rank.sentinel: rank for rank in STARTED.watched}
    left = max(0.0, until - time.monotonic())
    ready, _ = ray.wait([*waiting, *sentinels], num_returns=1, timeout=left, fetch_local=False)
    if not ready:
        names = ", ".join(dict.fromkeys(f"{rank.identity.role}.{method}" for rank, method in waiting.values()))
        late, told = report(dict(waiting.values()))
        raise DeadlineExceeded(f"{names} did not end within {deadline_s:g} s:\n{told}", late)
    if ready[0] in sentinels:
        rank = sentinels[ready[0]]
        _raise_failure(rank, _method_of(rank, waiting), rank.sentinel, waiting)
    return ready[0]


def _raise_failure(rank: Rank, method: str, reference: Any, waiting: Waiting) -> None:
    """If `reference` holds a failure, raise the likeliest cause among it and the failures within the grace."""
    error = _failure(rank, method, reference)
    if error is None:
        return
    found = [error]
    others = {r: w for r, w in waiting.items() if not isinstance(r, ray.ObjectRefGenerator)}
    others |= {r.sentinel: (r, _method_of(r, waiting)) for r in STARTED.watched if r is not rank}
    until = time.monotonic() + GRACE_S
    while others and not isinstance(found[-1], failures.Death):
        ready, _ = ray.wait(list(others), num_returns=1, timeout=max(0.0, until - time.monotonic()), fetch_local=False)
        if not ready:
            break
        error = _failure(*others.pop(ready[0]), ready[0])
        if error is not None:
            found.append(error)
    raise failures.culprit(found)


def _failure(rank: Rank, method: str, reference: Any) -> ClusterError | None:
    try:
        ray.get(reference)
    except RayError as error:
        return failures.from_ray(rank.identity, method, error)
    return None


def _method_of(rank: Rank, waiting: Waiting) -> str:
    return next(
        (method for other, method in waiting.values() if other is rank), "a call that nobody waits for, or none"
    )
