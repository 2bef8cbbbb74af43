"""Rows → one packed pass and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from roles.models.early_end import EarlyEnd
from roles.packing import micro_batches
from roles.rows import put_back
from roles.zero.micro_batch import MicroBatch, per_token, picked

CPU = torch.device("cpu")


def batch() -> Any:
    tokens = torch.tensor([[11, 12, 13, 14, 0], [21, 22, 0, 0, 0], [31, 32, 33, 34, 35]])
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 2:4] = True
    mask[2, [1, 3, 4]] = True  # a gap at column 2
    return SimpleNamespace(token_ids=tokens, lengths=torch.tensor([4, 2, 5]), response_mask=mask)


class FakeEngine:
    """Answers with the token before each scored one; `at_least` micro-batches, as if a peer had so many."""

    device = CPU

    def __init__(self, tokens: int, at_least: int = 1) -> None:
        self.tokens, self.at_least, self.calls = tokens, at_least, 0

    def passes(self, lengths: list[int]) -> list[list[int]]:
        return micro_batches(lengths, self.tokens, at_least=self.at_least)


def test_positions_stand_before_their_labels() -> None:
    rows = batch()
    micro = MicroBatch.of(rows, [0, 2], CPU)
    assert micro.packed.token_ids.tolist() == [11, 12, 13, 14, 31, 32, 33, 34, 35]
    assert micro.labels.tolist() == [13, 14, 32, 34, 35]
    assert micro.packed.token_ids[micro.positions].tolist() == [12, 13, 31, 33, 34]
    assert picked(rows.token_ids, rows, [0, 2], CPU).tolist() == micro.labels.tolist()
    assert micro.places.tolist() == [0, 1, 0, 0, 1], "a gap separates two responses"


@pytest.mark.parametrize(("tokens", "at_least"), [(1, 1), (7, 1), (100, 1), (100, 5)])
def test_answers_return_to_their_tokens(tokens: int, at_least: int) -> None:
    rows, engine = batch(), FakeEngine(tokens, at_least)

    def forward(micro: MicroBatch) -> Tensor:
        engine.calls += 1
        return micro.packed.token_ids[micro.positions].double()

    answers = per_token(engine, rows, forward)  # type: ignore[arg-type]
    assert answers.dtype == torch.float32
    expected = torch.zeros(3, 5)
    expected[0, 2:4] = torch.tensor([12.0, 13.0])
    expected[2, [1, 3, 4]] = torch.tensor([31.0, 33.0, 34.0])
    assert torch.equal(put_back(answers, rows.response_mask), expected)
    assert engine.calls >= at_least


def test_without_rows_there_is_a_stand_in() -> None:
    rows = batch()
    micro = MicroBatch.of(rows, [], CPU)
    assert len(micro.positions) == len(micro.labels) == len(picked(rows.token_ids.float(), rows, [], CPU)) == 1
    assert len(micro.packed.token_ids) == 2
    assert EarlyEnd((0,), 99).forbidden(micro.places).at.tolist() == [False]  # type: ignore[union-attr]


def test_where_a_response_may_not_end() -> None:
    micro = MicroBatch.of(batch(), [0, 2], CPU)
    found = EarlyEnd((2, 7), 1).forbidden(micro.places)
    assert found is not None and found.tokens == (2, 7)
    assert found.at.tolist() == [True, False, True, True, False]
    assert EarlyEnd((2, 7), 0).forbidden(micro.places) is None and EarlyEnd((), 3).forbidden(micro.places) is None


def test_a_first_token_cannot_be_scored() -> None:
    rows = batch()
    rows.response_mask[1, 0] = True
    with pytest.raises(ValueError, match="first token"):
        MicroBatch.of(rows, [0, 1], CPU)
