"""Responses with a minimum length: which tokens cannot be sampled at which positions, for vLLM and for the trainers.

`rollout.min_response_tokens` lets vLLM sample from a distribution without the tokens that end a response. The trainers
compute log-probabilities and entropy of the same distribution, so that ratio and KL belong to the sampled distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Tokens that have probability 0 at some positions; the probabilities of the other tokens add up to 1 there."""

    at: Tensor
    """bool `[n]`: True at the positions where `tokens` are forbidden."""
    tokens: tuple[int, ...]

    def drop(self, logits: Tensor, first: int = 0) -> Tensor:
        """Set the logits of the forbidden tokens to -inf, in place.

        `logits`: `[n, columns]`, of the vocabulary from token `first` on. Returns `logits`.
        """
        for token in self.tokens:
            if first <= token < first + logits.shape[-1]:
                logits[:, token - first].masked_fill_(self.at, -float("inf"))
        return logits


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """The tokens that end a response, and how many tokens a response has before one of them may follow."""

    tokens: tuple[int, ...] = ()
    before: int = 0

    def forbidden(self, places: Tensor) -> Forbidden | None:
        """The forbidden tokens at `places` (int64 `[n]`: tokens before each one in its response); None if there are
        none."""
        return Forbidden(places < self.before, self.tokens) if self.before and self.tokens else None


ANY_TIME = EarlyEnd()
"""No minimum length: a response may end with its first token."""


def places_in_responses(response_mask: Tensor) -> Tensor:
    """Number of tokens of the same response before each token: bool `[batch, time]` → int64 `[batch, time]`.

    A response is a run of generated tokens: in a conversation other tokens stand between two responses.
    """
    count = response_mask.long().cumsum(1)
    between = (count * ~response_mask).cummax(1).values  # the count at the end of the previous response
    return (count - between - 1).clamp(min=0)
