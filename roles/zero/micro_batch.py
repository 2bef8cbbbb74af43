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

from roles.batch import Experience
from roles.config.losses import LossMean
from roles.errors import LossNotFinite, RoleError
from roles.losses.means import denominator, masked_mean_weight
from roles.models.early_end import places_in_responses
from roles.packing import Packed, pack
from roles.zero.sharded import ShardedModel, Work


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
    sequences: Tensor
    """int64 `[n]`: which of the rows each of them is in."""
    places: Tensor
    """int64 `[n]`: how many tokens of its response come before each of them."""

    @classmethod
    def of(cls, batch: TokenRows, rows: Sequence[int], device: torch.device) -> MicroBatch:
        """The rows `rows` of `batch`; the tokens in the response mask are scored."""
        if not rows:
            first = torch.zeros(1, dtype=torch.long)
            packed, first = pack(torch.zeros(1, 2, dtype=torch.long), first + 2).to(device), first.to(device)
            late = torch.full_like(first, torch.iinfo(torch.long).max)  # whatever it is, it may stand there
            return cls(packed, first, first, first, late)
        index = torch.as_tensor(rows)
        lengths = batch.lengths[index]
        mask = batch.response_mask[index]
        row, column = mask.nonzero(as_tuple=True)
        if len(column) and int(column.min()) == 0:
            raise ValueError("response_mask is True on a row's first token, which nothing comes before")
        token_ids = batch.token_ids[index]
        starts = lengths.cumsum(0) - lengths
        return cls(
            pack(token_ids, lengths).to(device),
            (starts[row] + column - 1).to(device),
            token_ids[row, column].to(device),
            row.to(device),
            places_in_responses(mask)[row, column].to(device),
        )


def picked(values: Tensor, batch: TokenRows, rows: Sequence[int], device: torch.device) -> Tensor:
    """`values` `[batch, time]` at the tokens that `MicroBatch.of(batch, rows)` scores: `[n]`; one 0 without rows."""
    if not rows:
        return torch.zeros(1, dtype=values.dtype, device=device)
    index = torch.as_tensor(rows)
    return values[index][batch.response_mask[index]].to(device)


def per_token(model: ShardedModel, batch: TokenRows, forward: Callable[[MicroBatch], Tensor]) -> Tensor:
    """float32 `[batch, time]`: what `forward` answers for the tokens in the response mask, 0 elsewhere.

    A collective: every rank of the model's group comes here, also with no row.
    """
    answers = torch.zeros(batch.token_ids.shape)
    for rows in model.passes(batch.lengths.tolist()):
        with torch.no_grad():
            numbers = forward(MicroBatch.of(batch, rows, model.device)).float().cpu()
        if rows:
            index = torch.as_tensor(rows)
            row, column = batch.response_mask[index].nonzero(as_tuple=True)
            answers[index[row], column] = numbers
    return answers


@dataclass(frozen=True, slots=True)
class Update:
    """What an update over several optimizer steps and all ranks tells."""

    measured: Tensor
    """float64 `[steps, columns]`: sums of what the loss measured."""
    denominators: Tensor
    """float64 `[steps]`: what each step's summed loss was divided by; at least 1."""
    gradient_norm: float
    """Before clipping; mean over the steps."""
    learning_rate: float
    """Of the last step."""


MicroBatchLoss = Callable[[Experience, list[int], Tensor], tuple[Tensor, Tensor]]
"""(mini-batch, rows, weights `[batch, time]`) → (their summed weighted loss, with a gradient; measured `[columns]`)."""


def update(
    model: ShardedModel, mini_batches: Sequence[Experience], mean: LossMean, loss: MicroBatchLoss, constant: int = 1
) -> Update:
    """One optimizer step for each of this rank's shares of a mini-batch. A collective.

    Rows without a token in the response mask have no gradient and are left out.
    """
    kept = [batch.response_mask.any(1).nonzero().flatten().tolist() for batch in mini_batches]
    weights = [masked_mean_weight(batch.response_mask, mean, constant) for batch in mini_batches]
    denominators = [denominator(batch.response_mask, mean) for batch in mini_batches]
    work = [
        Work(batch.lengths[rows].tolist(), share)
        for batch, rows, share in zip(mini_batches, kept, denominators, strict=True)
    ]
    sums = [torch.zeros((), dtype=torch.float64, device=model.device)] * len(work)

    def step_loss(step: int, items: list[int]) -> Tensor:
        rows = [kept[step][item] for item in items]
        batch = mini_batches[step]
        summed, measured = loss(batch, rows, weights[step])
        # A stand-in for no row measures nothing.
        sums[step] = sums[step] + measured.double() * bool(rows)
        return summed

    try:
        facts = model.train(work, step_loss)
    except LossNotFinite as error:
        rows = [kept[error.step][item] for item in error.items]
        raise RoleError(
            f"the loss of rows {mini_batches[error.step].rows[rows].tolist()} of the batch is not finite, in optimizer "
            f"step {error.step + 1} of {len(work)}; lower optimizer.learning_rate, or look at these samples"
        ) from error
    shares = torch.tensor(denominators, dtype=torch.float64)
    total = model.total(torch.cat([torch.stack(sums).cpu(), shares[:, None]], 1))
    return Update(
        measured=total[:, :-1],
        denominators=total[:, -1].clamp(min=1),
        gradient_norm=sum(fact.gradient_norm for fact in facts) / len(facts),
        learning_rate=facts[-1].learning_rate,
    )
