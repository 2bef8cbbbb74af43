"""A trained rank that fails: from which checkpoint the run starts again, how often, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import orchestrator.stages.run
from cluster.errors import ClusterError, NodeLost, PlacementError
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from cluster.runtime.orders import Orders
from orchestrator.config.loading import load_config
from orchestrator.stages.run_again import carry_through
from orchestrator.stages.stage import Stage
from tests.unit.orchestrator.stages.test_run import TINY, Counting


def death(role: str = "counter") -> Death:
    return Death(f"{role} rank 0 (node n) died in update: signal 9", who=Identity(role, 0, "n", "log"))


def run(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    troubles: list[tuple[ClusterError, int]],
    *more: str,
) -> list[int]:
    """A run in which each error comes once, in the update of its step (0: in its start); the first step after each
    start."""
    monkeypatch.setattr(orchestrator.stages.run, "ORDERS", Orders())
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: True)
    began: list[int] = []

    class Counted(Counting):
        def load_state(self, checkpoint: Any) -> None:
            super().load_state(checkpoint)
            began[-1] = self.step

    @contextmanager
    def start(report: Any) -> Iterator[Stage]:
        began.append(0)
        trouble, step = troubles.pop(0) if troubles else (None, 0)
        if trouble and not step:
            raise trouble
        yield Counted(run_dir, trouble, (step, "update"))

    settings = (f"run_dir={run_dir}", "steps=6", "checkpoint={every: 2, keep: 9}", *more)
    carry_through(load_config(TINY, list(settings)), None, start, title="Counting", steps=6)
    return began


RESTART = "recovery.on_rank_failure=restart"


def test_the_run_goes_on_from_its_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, [(death(), 4), (death(), 6)], RESTART) == [0, 2, 4]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6], "each step is reported once"
    assert [line.get("healing/run_restarts") for line in lines] == [None, None, 1, None, 1, None]
    told = (
        "counter rank 0 (node n) died in update: signal 9: all roles are started again, and the run goes on from step 2"
    )
    assert told in capsys.readouterr().out
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "done"


def test_a_keeper_needs_no_checkpoint_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, [(death("keeper"), 4)], RESTART) == [0, 2]


def test_what_is_left_of_the_cluster_may_have_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is not wrong: it fitted. A run that does not fit at its start is."""
    none = PlacementError("the cluster is too small: asked for 2")
    with pytest.raises(NodeLost, match=r"died in update.*goes on from step 2\. There is no room.*asked for 2"):
        run(tmp_path, monkeypatch, [(death(), 4), (none, 0)], RESTART)
    with pytest.raises(PlacementError, match=r"^the cluster is too small"):
        run(tmp_path / "other", monkeypatch, [(none, 0)], RESTART)


@pytest.mark.parametrize(
    ("error", "step", "more"),
    [
        (death(), 4, ()),  # on_rank_failure: stop
        (death(), 1, (RESTART,)),  # there is no checkpoint yet
        (death("rollout"), 4, (RESTART,)),  # its own budget is spent
        (ClusterError("nobody is to blame"), 4, (RESTART,)),
        (death(), 4, (RESTART, "recovery.trained_failures_per_hour=0")),
    ],
)
def test_otherwise_the_run_ends(
    error: ClusterError, step: int, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError) as caught:
        run(tmp_path, monkeypatch, [(error, step)], *more)
    assert caught.value is error


def test_the_budget_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = [(death(), 4) for _ in range(9)]
    with pytest.raises(Death, match=r"failure number 3 within an hour, and recovery.trained_failures_per_hour=2"):
        run(tmp_path, monkeypatch, list(troubles), RESTART)
