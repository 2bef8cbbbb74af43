"""Some rows of a batch as one packed forward pass, and its answers back in their rows. Called by the roles.

The number that belongs to the token at column t (its log-probability, the value before it) is read where the model has
seen the columns up to t - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roles.engine import Engine
from roles.packing import Packed, pack


class TokenRows(Protocol):
    """What rollouts and experience have in common."""

    @property
    def token_ids(self) -> Tensor:
        """int64 `[batch, time]`, right-padded."""

    @property
    def lengths(self) -> Tensor:
        """int64 `[batch]`."""

    @property
    def response_mask(self) -> Tensor:
        """bool `[batch, time]`."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass over some rows. Without a row it is a stand-in that keeps a rank in step with its peers."""

    packed: Packed
    positions: Tensor
    """int64 `[n]`: the packed token before each scored one, row after row."""
    labels: Tensor
    """int64 `[n]`: the scored tokens."""

    @classmethod
    def of(cls, batch: TokenRows, rows: Sequence[int], device: torch.device) -> MicroBatch:
        """The rows `rows` of `batch`; the tokens in the response mask are scored."""
        if not rows:
            two = torch.zeros(1, 2, dtype=torch.long, device=device)
            first = torch.zeros(1, dtype=torch.long, device=device)
            return cls(pack(two, first + 2), first, first)
        index = torch.as_tensor(rows)
        lengths = batch.lengths[index]
        row, column = batch.response_mask[index].nonzero(as_tuple=True)
        if len(column) and int(column.min()) == 0:
            raise ValueError("response_mask is True on a row's first token, which nothing comes before")
        token_ids = batch.token_ids[index]
        starts = lengths.cumsum(0) - lengths
        return cls(
            pack(token_ids.to(device), lengths.to(device)),
            (starts[row] + column - 1).to(device),
            token_ids[row, column].to(device),
        )


def picked(values: Tensor, batch: TokenRows, rows: Sequence[int], device: torch.device) -> Tensor:
    """`values` `[batch, time]` at the tokens that `MicroBatch.of(batch, rows)` scores: `[n]`; one 0 without rows."""
    if not rows:
        return torch.zeros(1, dtype=values.dtype, device=device)
    index = torch.as_tensor(rows)
    return values[index][batch.response_mask[index]].to(device)


def per_token(engine: Engine, batch: TokenRows, forward: Callable[[MicroBatch], Tensor]) -> Tensor:
    """float32 `[batch, time]`: what `forward` answers for the tokens in the response mask, 0 elsewhere.

    A collective: every rank of the engine's group comes here, also with no row.
    """
    answers = torch.zeros(batch.token_ids.shape)
    for rows in engine.plan(batch.lengths.tolist()):
        with torch.no_grad():
            numbers = forward(MicroBatch.of(batch, rows, engine.device)).float().cpu()
        if rows:
            index = torch.as_tensor(rows)
            row, column = batch.response_mask[index].nonzero(as_tuple=True)
            answers[index[row], column] = numbers
    return answers


def trained_rows(batch: TokenRows) -> list[int]:
    """Rows with at least one token in the mask: the others have no gradient."""
    rows: list[int] = batch.response_mask.any(1).nonzero().flatten().tolist()
    return rows
