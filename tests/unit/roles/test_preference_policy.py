"""KTO's estimate of the KL is that of the whole optimizer step, whatever this rank has of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from roles.batch import Sequences
from roles.preference_policy import PreferencePolicy
from roles.shares import LabelledResponses, PreferencePairs, ReferencedResponses

OTHER_RANK = torch.tensor([-20.0, -36.0, 3.0], dtype=torch.float64)
"""Sums of the policy's and the reference's log-probabilities, and the number of responses there."""


class OneOfTwo(PreferencePolicy):
    """A rank whose peer has `OTHER_RANK`, and whose model gives every response -2."""

    def __init__(self) -> None:
        self._model = SimpleNamespace(total=lambda own: own + OTHER_RANK)  # type: ignore[assignment]

    def response_logprobs(self, sequences: Sequences) -> Tensor:
        return torch.full((len(sequences),), -2.0)


def responses(reference: list[float]) -> ReferencedResponses:
    count = len(reference)
    mask = torch.tensor([[False, True]]).repeat(count, 1)
    return ReferencedResponses(torch.ones(count, 2).long(), torch.full((count,), 2), mask, torch.tensor(reference))


@pytest.mark.parametrize(("reference", "expected"), [([-3.0, -5.0], 4.0), ([30.0, 10.0], 0.0), ([], 16 / 3)])
def test_the_kl_of_mismatched_responses_is_the_mean_over_all_ranks(reference: list[float], expected: float) -> None:
    """Of five responses: (-2·2 + 3 + 5 - 20 + 36) / 5; not below 0; also where this rank has none."""
    side, rows = responses(reference), torch.arange(len(reference))
    batch = LabelledResponses(side, side, torch.ones(len(rows), dtype=torch.bool), rows)
    assert float(OneOfTwo()._mismatched_kl(batch)) == pytest.approx(expected)


def test_pairs_need_no_such_estimate() -> None:
    side = responses([-3.0])
    pairs = PreferencePairs(side, side, torch.arange(1), certainty=torch.ones(1))
    assert OneOfTwo()._mismatched_kl(pairs) == 0
