"""Rows of a batch over the ranks of a group, and their answers back in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from roles.batch import Preferences, Responses, Sequences
from roles.packing import balance

R = TypeVar("R")
Rows = TypeVar("Rows", bound=Sequences | Responses | Preferences)
"""A batch with only the fields that the method reads."""

Part = tuple[int, int]
"""(engine, its first row) of some rollouts; sorted by this, the parts have the rows in the prompts' order."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A running call with one result per row: rank r computes the rows `parts[r]`."""

    call: Call[Tensor]
    parts: list[list[int]]
    width: int

    def result(self, deadline_s: float) -> Tensor:
        """float32 `[batch]` or `[batch, time]`, in the order of the batch."""
        answers = [answer for answer in self.call.result(deadline_s) if len(answer)]
        if answers[0].dim() == 2:
            answers = [torch.nn.functional.pad(answer, (0, self.width - answer.shape[1])) for answer in answers]
        joined = torch.cat(answers)
        order = torch.tensor([row for part in self.parts for row in part])
        return torch.empty_like(joined).index_copy_(0, order, joined)


def spread(group: RoleGroup[R], method: Callable[[R, Rows], Tensor], batch: Rows) -> Spread:
    """Start `method` on every rank of `group` with its share of the rows; shares have similar numbers of tokens."""
    parts = balance(batch.lengths.tolist(), len(group))
    return Spread(group.map(method, batch.split(parts)), parts, batch.token_ids.shape[1])
