"""A micro-batch: some rows of a batch as one packed forward pass. Updates consist of such passes.

The number that belongs to the token at column t (its log-probability, the value before it) is read where the model has
seen the columns up to t - 1. Results are put back into the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from roles.batch import TokenRows
from roles.config.losses import LossMean
from roles.errors import Diverged, LossNotFinite
from roles.losses.means import denominator, masked_mean_weight
from roles.models.early_end import places_in_responses
from roles.packing import Packed, pack, sent
from roles.shares import E, RankShare
from roles.zero.sharded import ShardedModel
from roles.zero.work import StepFacts, Term, Work

M = TypeVar("M", bound=NamedTuple)
"""The named tuple of metrics that a loss measures."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass over some rows. Without rows it is a stand-in that keeps a rank in step with its peers."""

    packed: Packed
    positions: Tensor
    """int64 `[n]`: index of the packed token before each scored one, row after row."""
    labels: Tensor
    """int64 `[n]`: ids of the scored tokens."""
    sequences: Tensor
    """int64 `[n]`: for each scored token, the index of its row among this micro-batch's rows."""
    places: Tensor
    """int64 `[n]`: for each scored token, the number of tokens of its response before it."""

    @classmethod
    def of(cls, batch: TokenRows, rows: Sequence[int], device: torch.device) -> MicroBatch:
        """The micro-batch of the rows `rows` of `batch`; the tokens in the response mask are scored."""
        if not rows:
            first = torch.zeros(1, dtype=torch.long)
            packed, first = pack(torch.zeros(1, 2, dtype=torch.long), first + 2).to(device), first.to(device)
            late = torch.full_like(first, torch.iinfo(torch.long).max)  # a place at which no token is forbidden
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
            sent(starts[row] + column - 1, device),
            sent(token_ids[row, column], device),
            sent(row, device),
            sent(places_in_responses(mask)[row, column], device),
        )


def picked(values: Tensor, batch: TokenRows, rows: Sequence[int], device: torch.device) -> Tensor:
    """`values` `[batch, time]` at the tokens that `MicroBatch.of(batch, rows)` scores: `[n]`; one 0 without rows."""
    if not rows:
        return torch.zeros(1, dtype=values.dtype, device=device)
    index = torch.as_tensor(rows)
    return sent(values[index][batch.response_mask[index]], device)


def per_token(model: ShardedModel, batch: TokenRows, forward: Callable[[MicroBatch], Tensor]) -> Tensor:
    """float32 `[n]`: the results of `forward` for the n tokens in the response mask, row after row;
    `roles.rows.put_back` gives them their places.

    A collective: every rank of the model's group must call it, also with no row.
    """
    found = []  # stays on the GPU until the last pass has been begun: a copy waits for the GPU
    for rows in model.passes(batch.lengths.tolist()):
        with torch.no_grad():
            found.append((rows, forward(MicroBatch.of(batch, rows, model.device)).float()))
    answers = torch.zeros(batch.token_ids.shape)
    for rows, numbers in found:
        if rows:
            index = torch.as_tensor(rows)
            row, column = batch.response_mask[index].nonzero(as_tuple=True)
            answers[index[row], column] = numbers.cpu()
    return answers[batch.response_mask]


@dataclass(frozen=True, slots=True)
class Objective(Generic[E, M]):
    """The loss that each optimizer step of an update minimises: a mean over its tokens or responses."""

    loss: Callable[[E, list[int], Tensor], tuple[Tensor, M]]
    """(experience, rows, weights `[batch, time]`) → (sum of the rows' weighted losses, with a gradient; metrics
    summed over the rows, scalars)."""
    measures: type[M]
    mean: LossMean
    constant: int = 1
    """The divisor of `mean: constant`, in tokens."""


@dataclass(frozen=True, slots=True)
class Update(Generic[M]):
    """Results of an update over several optimizer steps and all ranks."""

    steps: M
    """The loss's metrics, summed over each optimizer step, float64 `[steps]`."""
    total: M
    """The loss's metrics, summed over the whole update, float64 scalars."""
    denominators: Tensor
    """float64 `[steps]`: the divisor of each step's summed loss; at least 1."""
    gradient_norm: float
    """Gradient norm before clipping, mean over the optimizer steps."""
    learning_rate: float
    """Learning rate of the last optimizer step."""


class Lesson(Generic[E, M]):
    """This rank's share of some samples, and the objective that its optimizer steps minimise; one step can learn
    several lessons. Rows without a token in the response mask have no gradient and are left out."""

    def __init__(
        self,
        model: ShardedModel,
        share: RankShare[E],
        objective: Objective[E, M],
        *,
        coefficient: float = 1.0,
        rows_of: str = "the batch",
    ) -> None:
        """`coefficient`: factor of the objective in the loss; `rows_of`: what `share.experience.rows` counts, for
        errors."""
        self._model, self._rows_of = model, rows_of
        self._batch: E = share.experience
        self._objective: Objective[E, M] = objective
        trained, lengths = self._batch.response_mask.any(1).tolist(), self._batch.lengths.tolist()
        self._kept = [[row for row in rows if trained[row]] for rows in share.steps]
        self._weights = masked_mean_weight(self._batch.response_mask, objective.mean, objective.constant)
        self._denominators = [denominator(self._batch.response_mask[rows], objective.mean) for rows in self._kept]
        work = [
            Work([lengths[row] for row in rows], divisor)
            for rows, divisor in zip(self._kept, self._denominators, strict=True)
        ]
        self._sums = [torch.zeros((), dtype=torch.float64, device=model.device)] * len(work)
        self.term = Term(work, self._loss, coefficient)

    def _loss(self, step: int, items: list[int]) -> Tensor:
        rows = [self._kept[step][item] for item in items]
        summed, measured = self._objective.loss(self._batch, rows, self._weights)
        # A stand-in without rows measures nothing.
        self._sums[step] = self._sums[step] + torch.stack(measured).detach().double() * bool(rows)
        return summed

    def diverged(self, error: LossNotFinite) -> Diverged:
        """The error of one of these samples, for the user."""
        rows = [self._kept[error.step][item] for item in error.items]
        return Diverged(
            f"the loss of rows {self._batch.rows[rows].tolist()} of {self._rows_of} is not finite, in optimizer step "
            f"{error.step + 1} of {len(self._kept)}; lower optimizer.learning_rate, or look at these samples"
        )

    def learned(self, facts: Sequence[StepFacts]) -> Update[M]:
        """Its results, after `learn` has taken the steps. A collective."""
        own = torch.cat(
            [torch.stack(self._sums).cpu(), torch.tensor(self._denominators, dtype=torch.float64)[:, None]], 1
        )
        everyone = self._model.total(own)
        measured = everyone[:, :-1]
        return Update(
            steps=self._objective.measures._make(measured.unbind(1)),
            total=self._objective.measures._make(measured.sum(0)),
            denominators=everyone[:, -1].clamp(min=1),
            gradient_norm=sum(fact.gradient_norm for fact in facts) / len(facts),
            learning_rate=facts[-1].learning_rate,
        )


def learn(model: ShardedModel, *lessons: Lesson[Any, Any]) -> list[StepFacts]:
    """Take the optimizer steps of all `lessons` together. A collective."""
    try:
        return model.train(*(lesson.term for lesson in lessons))
    except LossNotFinite as error:
        raise lessons[error.term].diverged(error) from error


def update(model: ShardedModel, share: RankShare[E], objective: Objective[E, M]) -> Update[M]:
    """Take the optimizer steps of this rank's share. A collective."""
    lesson = Lesson(model, share, objective)
    return lesson.learned(learn(model, lesson))
