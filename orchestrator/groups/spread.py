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
"""The fields that the method reads, and no others."""

Part = tuple[int, int]
"""(engine, its first row) of some rollouts; parts sorted by it have the rows of the prompts, in their order."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One answer a row, under way: rank r of `call` answers for the rows `parts[r]`."""

    call: Call[Tensor]
    parts: list[list[int]]
    width: int

    def result(self, deadline_s: float) -> Tensor:
        """float32 `[batch]` or `[batch, time]`, in the rows' own order."""
        answers = [answer for answer in self.call.result(deadline_s) if len(answer)]
        if answers[0].dim() == 2:
            answers = [torch.nn.functional.pad(answer, (0, self.width - answer.shape[1])) for answer in answers]
        joined = torch.cat(answers)
        order = torch.tensor([row for part in self.parts for row in part])
        return torch.empty_like(joined).index_copy_(0, order, joined)


def spread(group: RoleGroup[R], method: Callable[[R, Rows], Tensor], batch: Rows) -> Spread:
    """Start `method` on every rank of `group` with its share of the rows, shared out by tokens."""
    parts = balance(batch.lengths.tolist(), len(group))
    return Spread(group.map(method, batch.split(parts)), parts, batch.token_ids.shape[1])
