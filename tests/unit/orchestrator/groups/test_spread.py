"""Rows over ranks: what groups with as many ranks are given together, and answers back in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from orchestrator.groups import spread as module
from orchestrator.groups.spread import Shared, spread
from roles.batch import Responses, Sequences
from tests.unit.orchestrator.fakes import Answers

ROWS, TIME = 4, 5


@dataclass(frozen=True)
class Reference:
    """What stands for a reference to an object in Ray's store."""

    value: Any


@dataclass
class Group:
    """Ranks that answer with each row's first token."""

    ranks: int
    given: list[list[Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.ranks

    def map(self, method: Any, shards: list[Any]) -> Answers:
        self.given.append(shards)
        rows = [shard.value if isinstance(shard, Reference) else shard for shard in shards]
        return Answers([shard.token_ids[:, 0].float() for shard in rows])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been put into the object store; any rank's rows are large enough for it."""
    found: list[Any] = []

    def stored(values: list[Any]) -> list[Reference]:
        found.extend(values)
        return [Reference(value) for value in values]

    monkeypatch.setattr(module, "stored", stored)
    monkeypatch.setattr(module, "STORED_TOKENS", 1)
    return found


def batch() -> Sequences:
    lengths = torch.tensor([2, 5, 3, 4])
    columns = torch.arange(TIME)
    mask = (columns >= 1) & (columns < lengths.unsqueeze(1))
    return Sequences(torch.arange(ROWS * TIME).reshape(ROWS, TIME), lengths, mask)


def started(group: Group, rows: Any, shared: Shared | None) -> Any:
    return spread(group, Group.map, rows, shared)  # type: ignore[arg-type]


def test_groups_with_as_many_ranks_are_given_one_copy(store: list[Any]) -> None:
    rows, groups, shared = batch(), [Group(2), Group(2), Group(1)], Shared()
    calls = [started(group, Sequences.of(rows), shared) for group in groups]
    assert groups[0].given[0] is groups[1].given[0]
    assert len(store) == 3  # two halves, and the whole for the single rank
    for call in calls:
        assert call.result(1.0).tolist() == [0.0, 5.0, 10.0, 15.0]


def test_other_rows_are_not_taken_for_the_same(store: list[Any]) -> None:
    """Neither those of another batch nor what reads more than tokens, of which each member may read other columns."""
    rows, shared, texts = batch(), Shared(), ["a"] * ROWS
    both = [
        Responses(
            rows.token_ids, rows.lengths, rows.response_mask, torch.ones(ROWS).bool(), texts, texts, {name: texts}
        )
        for name in ("first", "second")
    ]
    groups = [Group(2) for _ in range(4)]
    for group, given in zip(groups, [rows, batch(), *both], strict=True):
        started(group, given, shared)
    assert len(store) == 4 * 2
    assert [list(group.given[0][0].value.columns) for group in groups[2:]] == [["first"], ["second"]]


def test_a_call_that_begins_again_is_given_the_same_rows(store: list[Any]) -> None:
    group = Group(2)
    call = started(group, batch(), Shared())
    call.begin()
    assert group.given[1] == group.given[0]
    assert call.result(1.0).tolist() == [0.0, 5.0, 10.0, 15.0]


def test_few_tokens_go_with_the_call() -> None:
    group = Group(2)
    started(group, batch(), Shared())
    assert all(isinstance(shard, Sequences) for shard in group.given[0])
