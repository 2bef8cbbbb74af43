"""A training on a data set: its checkpoints are compared by what was held out. Reports and checkpoints are real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.stages.run
from cluster.ranks.usage import Usage
from cluster.runtime.orders import Orders
from orchestrator.config.loading import load_config
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import Resume
from orchestrator.stages.run import carry_out
from orchestrator.stages.scheduled_stage import ScheduledStage
from orchestrator.stages.stage import Stage, StepReport
from tests.unit.orchestrator.stages.test_run import TINY, Counter

HELDOUT = {1: 0.9, 2: 0.3, 3: 0.2, 5: 0.4, 7: 0.25, 8: 0.8}
"""Step → loss of what is held out; the other steps are not tested."""


class Held(ScheduledStage):
    """A number in training."""

    role = "counter"
    quality_metric = "-sft/heldout_loss"
    ends = 8

    def one_step(self, clock: Any) -> StepReport:
        if self.step == self.ends:
            raise KeyboardInterrupt
        self.step += 1
        tested = {"sft/heldout_loss": HELDOUT[self.step]} if self.step in HELDOUT else {}
        return StepReport({"sft/loss": 1.0, **tested})

    def save_models(self) -> None: ...

    def save_models_in(self, folder: Path) -> None: ...


def train(run_dir: Path, ends: int, resume: Resume = None) -> list[int]:
    """The steps of the checkpoints after a run that is interrupted after `ends` steps."""
    keep = "checkpoint={every: 100, keep: 1, keep_best: 2}"
    config = load_config(TINY, [f"run_dir={run_dir}", "steps=8", keep, "evaluation.every=2"])

    @contextmanager
    def start(report: Any) -> Iterator[Stage]:
        ray: Any = SimpleNamespace(usage=lambda: Usage([], 1.0, []))
        learned: Any = SimpleNamespace(name="data", digest="d", check=lambda checkpoint: None)
        trainer: Any = Counter()
        stage = Held(ray, trainer, [[0]] * 8, learned, report)
        stage.ends = ends
        yield stage

    carry_out(config, resume, start, title="Held", steps=8)
    return Checkpoints(run_dir / "checkpoints", keep=9).steps()


def test_the_checkpoints_of_the_lowest_heldout_losses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator.stages.run, "ORDERS", Orders())
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: True)
    assert train(tmp_path / "whole", 9) == [3, 7, 8]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", 5)
    assert Checkpoints(tmp_path / "interrupted/checkpoints", keep=9).steps() == [2, 3, 5]
    assert train(tmp_path / "interrupted", 9, "newest") == [3, 7, 8]
