"""Rows of a batch over the ranks of a group, and their answers back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from cluster.errors import ClusterError
from cluster.ranks.calls import Call, wait_all
from cluster.ranks.role_group import RoleGroup
from orchestrator.groups.recovery import Recovery
from roles.batch import Preferences, Responses, Sequences
from roles.packing import balance
from roles.reward_call import RowScores
from roles.rows import put_back

R = TypeVar("R")
Rows = TypeVar("Rows", bound=Sequences | Responses | Preferences)
"""A batch with only the fields that the method reads."""

Part = tuple[int, int]
"""(engine, its first row) of some rollouts; sorted by this, the parts have the rows in the prompts' order."""


@dataclass(slots=True)
class Spread:
    """A running call with one result per row or token: rank r computes the rows `parts[r]`."""

    group: RoleGroup[Any]
    method: Callable[[Any, Any], Tensor | RowScores]
    batch: Sequences | Responses | Preferences
    parts: list[list[int]]
    call: Call[Tensor | RowScores] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the method on every rank, also once more."""
        self.call = self.group.map(self.method, self.batch.split(self.parts))

    def result(self, deadline_s: float) -> Tensor:
        """Of a method with one number per row: float32 `[batch]`, in the order of the batch."""
        found = [answer.scores if isinstance(answer, RowScores) else answer for answer in self.call.result(deadline_s)]
        joined = torch.cat(found)
        return torch.empty_like(joined).index_copy_(0, self._order, joined)

    def tokens(self, deadline_s: float) -> Tensor:
        """Of a method with one number per generated token, row after row: float32 `[batch, time]`, 0 elsewhere."""
        assert not isinstance(self.batch, Preferences)
        answers, order = cast(list[Tensor], self.call.result(deadline_s)), self._order
        numbers = put_back(torch.cat(answers), self.batch.response_mask[order])
        return torch.empty_like(numbers).index_copy_(0, order, numbers)

    @property
    def _order(self) -> Tensor:
        """The row of the batch that each answered one is."""
        return torch.tensor([row for part in self.parts for row in part])

    def named(self, deadline_s: float) -> list[dict[str, float]]:
        """Of each row the named numbers beside its score; none where the method gives only scores."""
        rows: list[dict[str, float]] = [{} for _ in range(len(self.batch))]
        for part, answer in zip(self.parts, self.call.result(deadline_s), strict=True):
            for row, said in zip(part, answer.named if isinstance(answer, RowScores) else (), strict=False):
                rows[row] = said
        return rows


def spread(group: RoleGroup[R], method: Callable[[R, Rows], Tensor | RowScores], batch: Rows) -> Spread:
    """Start `method` on every rank of `group` with its share of the rows; shares have similar numbers of tokens."""
    return Spread(group, method, batch, balance(batch.lengths.tolist(), len(group)))


def wait_for(spreads: Sequence[Spread], deadline_s: float, recovery: Recovery) -> None:
    """Wait for running calls. If a rank of a frozen group fails, the group is started again, and so are its calls."""
    while True:
        try:
            return wait_all([own.call for own in spreads], deadline_s)
        except ClusterError as error:
            revived = recovery.revive(error)
        for own in spreads:
            if own.group.role in revived:
                own.begin()
