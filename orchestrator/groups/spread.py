"""Rows of a batch over the ranks of a group, and their answers back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor

from cluster.errors import ClusterError
from cluster.ranks.calls import Call, stored, wait_all
from cluster.ranks.role_group import RoleGroup
from orchestrator.groups.recovery import Recovery
from roles.batch import Preferences, Responses, Sequences
from roles.packing import balance
from roles.reward_call import RowScores
from roles.rows import put_back

R = TypeVar("R")
Rows = TypeVar("Rows", bound=Sequences | Responses | Preferences)
"""A batch with only the fields that the method reads."""

STORED_TOKENS = 2**15
"""Of fewer tokens a rank's rows are sent with the call: Ray stores no arguments under 100 kB."""

Part = tuple[int, int]
"""(engine, its first row) of some rollouts; sorted by this, the parts have the rows in the prompts' order."""


@dataclass(slots=True)
class Spread:
    """A running call with one result per row or token: rank r computes the rows `parts[r]`."""

    group: RoleGroup[Any]
    method: Callable[[Any, Any], Tensor | RowScores]
    parts: list[list[int]]
    given: list[Any]
    """What each rank is given: its rows, or a reference to them."""
    call: Call[Tensor | RowScores]

    @classmethod
    def start(
        cls,
        group: RoleGroup[R],
        method: Callable[[R, Any], Tensor | RowScores],
        parts: list[list[int]],
        given: list[Any],
    ) -> Self:
        """Start the method on every rank."""
        return cls(group, method, parts, given, group.map(method, given))

    def begin(self) -> None:
        """Start the method on every rank once more."""
        self.call = self.group.map(self.method, self.given)

    def of_ranks(self, ranks: range) -> Spread:
        """The same call of some ranks, whose rows are counted by themselves."""
        own = slice(ranks.start, ranks.stop)
        return Spread(self.group, self.method, self.parts[own], self.given[own], self.call.of_ranks(ranks))

    def result(self, deadline_s: float) -> Tensor:
        """Of a method with one number per row: float32 `[batch]`, in the order of the batch."""
        found = [answer.scores if isinstance(answer, RowScores) else answer for answer in self.call.result(deadline_s)]
        joined = torch.cat(found)
        return torch.empty_like(joined).index_copy_(0, order_of(self.parts), joined)

    def tokens(self, mask: Tensor, deadline_s: float) -> Tensor:
        """Of a method with one number per generated token, row after row: float32 `[batch, time]`, 0 elsewhere.
        `mask`: bool `[batch, time]`, the generated tokens."""
        return tokens_of(cast(list[Tensor], self.call.result(deadline_s)), self.parts, mask)

    def named(self, deadline_s: float) -> list[dict[str, float]]:
        """Of each row the named numbers beside its score; none where the method gives only scores."""
        rows: list[dict[str, float]] = [{} for part in self.parts for _ in part]
        for part, answer in zip(self.parts, self.call.result(deadline_s), strict=True):
            for row, said in zip(part, answer.named if isinstance(answer, RowScores) else (), strict=False):
                rows[row] = said
        return rows


def order_of(parts: Sequence[Sequence[int]]) -> Tensor:
    """The row of the batch that each answered one is."""
    return torch.tensor([row for part in parts for row in part])


def tokens_of(answers: Sequence[Tensor], parts: Sequence[Sequence[int]], mask: Tensor) -> Tensor:
    """`[batch, time]`: the numbers of every rank, one per generated token of its rows, put back; 0 elsewhere.

    Args:
        answers: of each rank, float32 `[n]`.
        parts: of each rank, its rows.
        mask: bool `[batch, time]`, the generated tokens.
    """
    order = order_of(parts)
    numbers = put_back(torch.cat(list(answers)), mask[order])
    return torch.empty_like(numbers).index_copy_(0, order, numbers)


@dataclass(frozen=True, slots=True)
class Apportioned:
    """Rows of a batch for each rank of a group."""

    parts: list[list[int]]
    given: list[Any]
    """What calls are given: each rank's rows, or references to them."""

    @classmethod
    def of(cls, batch: Sequences | Responses | Preferences, ranks: int) -> Apportioned:
        """Shares have similar numbers of tokens."""
        parts = balance(batch.lengths.tolist(), ranks)
        rows = batch.split(parts)
        return cls(parts, stored(rows) if int(batch.lengths.sum()) >= STORED_TOKENS * ranks else rows)


Shared = dict[tuple[int, int], Apportioned]
"""(id of tokens, ranks) → the `Sequences` that groups with as many ranks are given, all of them the same copy."""


def spread(
    group: RoleGroup[R], method: Callable[[R, Rows], Tensor | RowScores], batch: Rows, shared: Shared | None = None
) -> Spread:
    """Start `method` on every rank of `group` with its share of the rows. `shared`: what other groups were given, of
    which this one takes what is the same."""
    if shared is None or type(batch) is not Sequences:
        share = Apportioned.of(batch, len(group))
    else:
        key = (id(batch.token_ids), len(group))
        share = shared[key] = shared.get(key) or Apportioned.of(batch, len(group))
    return Spread.start(group, method, share.parts, share.given)


def wait_for(
    spreads: Sequence[Spread], deadline_s: float, recovery: Recovery, before: Sequence[Call[None]] = ()
) -> None:
    """Wait for running calls. If a rank of a frozen group fails, the group is started again, and so are its calls.
    `before`: calls that make what others are given: where one fails or is late, no frozen group is to blame."""
    while True:
        try:
            return wait_all([*before, *(own.call for own in spreads)], deadline_s)
        except ClusterError as error:
            revived = recovery.revive(error)
        for own in spreads:
            if own.group.role in revived:
                own.begin()
