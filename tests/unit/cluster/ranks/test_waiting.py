"""Waiting for many ranks costs as much as there are ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.ranks import calls
from cluster.ranks.calls import Call, wait_all
from cluster.ranks.identity import Identity

RANKS = 500


def test_the_work_is_linear_in_the_ranks_that_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, read = list[int](), list[Any]()

    def wait(references: list[Any], *, num_returns: int, **_: Any) -> tuple[list[Any], list[Any]]:
        looked_at.append(len(references))
        return references[:num_returns], references[num_returns:]

    monkeypatch.setattr(calls, "ray", SimpleNamespace(wait=wait, get=read.append))
    monkeypatch.setattr(calls, "STARTED", SimpleNamespace(watched=[]))
    receipts = [object() for _ in range(RANKS)]
    ranks: Any = [SimpleNamespace(identity=Identity("actor", number, "node", "log")) for number in range(RANKS)]
    wait_all([Call("update", ranks, receipts, receipts)], 60)
    assert read == receipts and sum(looked_at) <= 4 * RANKS


def test_while_nothing_ends_the_caller_goes_on_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, slept = list[str](), list[float]()
    ready_after = [[], [], ["receipt"]]

    def wait(references: list[Any], *, timeout: float, **_: Any) -> tuple[list[Any], list[Any]]:
        slept.append(timeout)
        return ready_after.pop(0) if ready_after else references, []

    monkeypatch.setattr(calls, "ray", SimpleNamespace(wait=wait, get=lambda _: None))
    monkeypatch.setattr(calls, "STARTED", SimpleNamespace(watched=[]))
    rank: Any = SimpleNamespace(identity=Identity("actor", 0, "node", "log"))
    wait_all([Call("construct", [rank], ["receipt"], ["value"])], 60, lambda: asked.append("told"), every_s=2.0)
    assert asked == ["told", "told"] and slept[:3] == [2.0, 2.0, 2.0]
