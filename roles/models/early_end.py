"""Responses with a least length: which tokens cannot be sampled at which positions, for vLLM and for the trainers.

`rollout.min_response_tokens` lets vLLM sample from a distribution without the tokens that end a response. The trainers
compute log-probabilities and entropy of the same distribution, so that ratio and KL belong to the sampled distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Tokens with probability 0 in some places, where the others add up to 1."""

    at: Tensor
    """bool `[n]`: in which places."""
    tokens: tuple[int, ...]

    def drop(self, logits: Tensor, first: int = 0) -> Tensor:
        """Set theirs to -inf in `logits` `[n, columns]`, of the tokens from `first` on; changes it and returns it."""
        for token in self.tokens:
            if first <= token < first + logits.shape[-1]:
                logits[:, token - first].masked_fill_(self.at, -float("inf"))
        return logits


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """`tokens` end a response, and can not be among its first `before` tokens."""

    tokens: tuple[int, ...] = ()
    before: int = 0

    def forbidden(self, places: Tensor) -> Forbidden | None:
        """Where, of tokens that come after `places` (int64 `[n]`) others of their response; None if it is nowhere."""
        return Forbidden(places < self.before, self.tokens) if self.before and self.tokens else None


ANY_TIME = EarlyEnd()
"""A response may end with its first token."""


def places_in_responses(response_mask: Tensor) -> Tensor:
    """How many tokens of the same response come before each one: int64 `[batch, time]`, of a bool mask.

    A response is a run of generated tokens: in a conversation other tokens stand between two of them.
    """
    count = response_mask.long().cumsum(1)
    between = (count * ~response_mask).cummax(1).values  # what was counted up to the last gap
    return (count - between - 1).clamp(min=0)
