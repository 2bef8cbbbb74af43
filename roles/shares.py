"""What actor and critic learn from in a step, and each rank's share of it.

Layout and masks are those of `roles.batch`, whose example goes on here. A type has the fields that its role reads and
no others: they are sent to every rank of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from roles.rows import Batch, check_shape, check_tokens


@dataclass(frozen=True, slots=True)
class ActorExperience(Batch):
    """What the actor is trained on. Made by `orchestrator.ppo.experience` on the driver.

    Example (of `Scored`, with γ = λ = 1, a KL coefficient of 0.1 in the rewards, no whitening and no correction: the
    first row's reward is -0.1 · (-0.5 + 0.7) for its first token and 1 for its EOS):
        token_ids          = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2], [5, 6, 4, 9, 0]]
        lengths            = [4, 5, 4]
        response_mask      = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
        rows               = [0, 1, 2]
        old_logprobs       = [[0, 0, -0.5, -0.1, 0], [0, -1.0, -0.2, -0.9, -0.1], [0, 0, 0, -2.0, 0]]
        rollout_logprobs   = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        reference_logprobs = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        advantages         = [[0, 0, 0.48, 0.5, 0], [0, -0.1, -0.2, -0.3, -0.4], [0, 0, 0, -0.5, 0]]
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    """bool `[batch, time]`: the tokens that are trained on (a masked truncated sample has none)."""
    rows: Tensor
    """int64 `[batch]`: which row of the PPO step's batch each is."""
    old_logprobs: Tensor
    rollout_logprobs: Tensor
    """0 without a correction by importance: the loss does not read them."""
    reference_logprobs: Tensor
    """0 unless the KL penalty is in the loss, which alone reads them."""
    advantages: Tensor
    """float32 `[batch, time]`, whitened over the batch if the configuration says so."""

    def __post_init__(self) -> None:
        check_tokens(self)
        check_shape(self, "rows", self.lengths.shape, torch.int64)
        for name in ("old_logprobs", "rollout_logprobs", "reference_logprobs", "advantages"):
            check_shape(self, name, self.token_ids.shape, torch.float32)


@dataclass(frozen=True, slots=True)
class CriticExperience(Batch):
    """What the critic is trained on. Made by `orchestrator.ppo.experience` on the driver.

    Example (of the same batch as that of `ActorExperience`):
        token_ids     = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2], [5, 6, 4, 9, 0]]
        lengths       = [4, 5, 4]
        response_mask = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
        rows          = [0, 1, 2]
        values        = [[0, 0, 0.5, 0.5, 0], [0, 0.1, 0.2, 0.3, 0.4], [0, 0, 0, -0.5, 0]]
        returns       = [[0, 0, 0.98, 1.0, 0], [0, 0, 0, 0, 0], [0, 0, 0, -1.0, 0]]
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    """bool `[batch, time]`: the tokens that are trained on (a masked truncated sample has none)."""
    rows: Tensor
    """int64 `[batch]`: which row of the PPO step's batch each is."""
    values: Tensor
    """float32 `[batch, time]`: as the critic gave them."""
    returns: Tensor
    """float32 `[batch, time]`: advantage before whitening + value; the critic's target."""

    def __post_init__(self) -> None:
        check_tokens(self)
        check_shape(self, "rows", self.lengths.shape, torch.int64)
        for name in ("values", "returns"):
            check_shape(self, name, self.token_ids.shape, torch.float32)


@dataclass(frozen=True, slots=True)
class Demonstrations(Batch):
    """What a policy imitates. Made by `orchestrator.data.demonstrations`.

    Example:
        token_ids     = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2]]
        lengths       = [4, 5]
        response_mask = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
        rows          = [0, 1]
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    """bool `[batch, time]`: the tokens that are trained on."""
    rows: Tensor
    """int64 `[batch]`: which of all demonstrations each is."""

    def __post_init__(self) -> None:
        check_tokens(self)
        check_shape(self, "rows", self.lengths.shape, torch.int64)


@dataclass(frozen=True, slots=True)
class ReferencedResponses(Batch):
    """Responses and what a frozen reference thinks of them.

    Example:
        token_ids         = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2]]
        lengths           = [4, 5]
        response_mask     = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
        reference_logprob = [-2.5, -7.1]
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    """bool `[batch, time]`: the tokens that are trained on."""
    reference_logprob: Tensor
    """float32 `[batch]`, in nats: summed over each row's response mask; not read by losses without a reference."""

    def __post_init__(self) -> None:
        check_tokens(self)
        check_shape(self, "reference_logprob", self.lengths.shape, torch.float32)
        if not bool(self.response_mask.any(1).all()):
            raise ValueError("a response has no trained token, so it has no mean over its tokens")


@dataclass(frozen=True, slots=True)
class PreferencePairs(Batch):
    """What a policy learns preferences from: row by row, a response that is preferred to another one."""

    chosen: ReferencedResponses
    rejected: ReferencedResponses
    rows: Tensor
    """int64 `[batch]`: which of all pairs each is."""
    certainty: Tensor
    """float32 `[batch]`: probability that the chosen response is the better one; 1: it is known."""

    def __post_init__(self) -> None:
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{len(self.chosen)} chosen responses beside {len(self.rejected)} rejected ones")
        check_shape(self, "rows", self.chosen.lengths.shape, torch.int64)
        check_shape(self, "certainty", self.chosen.lengths.shape, torch.float32)

    @property
    def responses(self) -> ReferencedResponses:
        """`[2 * batch]`: those that are trained on, first the chosen ones, then the rejected ones."""
        return ReferencedResponses.concatenate([self.chosen, self.rejected])

    @property
    def tokens(self) -> Tensor:
        """int64 `[batch]`: tokens of each pair."""
        return self.chosen.lengths + self.rejected.lengths


@dataclass(frozen=True, slots=True)
class LabelledResponses(Batch):
    """What a policy learns from labels: row by row, a response that is desirable or not.

    Example (the second row's `mismatched` is the first row's response after the second row's prompt):
        responses  = 2 rows
        mismatched = 2 rows
        desirable  = [1, 0]
        rows       = [0, 1]
    """

    responses: ReferencedResponses
    mismatched: ReferencedResponses
    """Another row's response after this row's prompt, for KTO's estimate of the KL; it is not trained on."""
    desirable: Tensor
    """bool `[batch]`."""
    rows: Tensor
    """int64 `[batch]`: which of all labelled responses each is."""

    def __post_init__(self) -> None:
        if len(self.responses) != len(self.mismatched):
            raise ValueError(f"{len(self.responses)} responses beside {len(self.mismatched)} mismatched ones")
        check_shape(self, "desirable", self.responses.lengths.shape, torch.bool)
        check_shape(self, "rows", self.responses.lengths.shape, torch.int64)

    @property
    def tokens(self) -> Tensor:
        """int64 `[batch]`: tokens of each response."""
        return self.responses.lengths


PreferenceBatch = PreferencePairs | LabelledResponses
"""What a policy learns preferences from."""


E = TypeVar("E", ActorExperience, CriticExperience, Demonstrations)


@dataclass(frozen=True, slots=True)
class RankShare(Generic[E]):
    """What one rank trains on in a PPO step: each of its rows once, and which of them make each optimizer step.

    Example (two epochs of two optimizer steps; another rank has the rest of each): `experience` has the rows 0, 2 and 5
    of the batch, and
        steps = [[0, 1], [2], [1], [0, 2]]
    """

    experience: E
    steps: list[list[int]]
    """For each optimizer step, positions in `experience`."""
    beside: RankShare[Demonstrations] | None = None
    """Of the actor: what the same optimizer steps imitate, for the pre-training loss; None without one."""
