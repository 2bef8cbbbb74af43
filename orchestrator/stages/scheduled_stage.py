"""A training of one model on a data set that is read before the start: every step is known then.

What such trainings have in common; a subclass says what a step is, and what is saved at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.counts import counted
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.errors import ConfigError
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.learned_data import LearnedData
from orchestrator.stages.stage import Stage, StepReport
from roles.config.models import OptimizerConfig


@dataclass(slots=True)
class ScheduledStage(Stage):
    """One model in training; a step is one optimizer step."""

    role: ClassVar[str]
    quality_metric: ClassVar[str]
    """The metric of what is held out that compares checkpoints; `-` before its name: the lower the better."""
    ray: RayCluster
    trainer: RoleGroup[Any]
    schedule: list[list[int]]
    """Numbers of the items that each step learns from."""
    learned: LearnedData
    report: Reporter
    step: int = field(default=0, kw_only=True)
    scores: dict[int, float] = field(default_factory=dict, kw_only=True)
    """Step → what was held out, as it was measured after that step; higher is better."""

    @property
    def cluster(self) -> RayCluster:
        """The cluster on which the model is trained."""
        return self.ray

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return len(self.schedule)

    @property
    def trained(self) -> Mapping[str, RoleGroup[Any]]:
        """The model."""
        return {self.role: self.trainer}

    def state_dict(self) -> dict[str, Any]:
        """Number of steps done, and the hash of the data."""
        return {"step": self.step, self.learned.name: self.learned.digest}

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if the checkpoint is of other data, or of more steps than the run has."""
        self.learned.check(checkpoint)
        self.step = checkpoint.step

    def loaded(self) -> None:
        """Remember the scores of the steps so far."""
        for step, metrics in self.report.metrics():
            self._compare(step, metrics)

    def after_step(self, told: StepReport) -> None:
        """Remember the score of the step, if it was tested."""
        self._compare(self.step, told.metrics)

    def _compare(self, step: int, metrics: Mapping[str, float]) -> None:
        score = quality_of(metrics, self.quality_metric)
        if score is not None:
            self.scores[step] = score


def check_warmup(key: str, optimizer: OptimizerConfig, steps: int) -> None:
    """Raise ConfigError if the learning rate of section `key` would still rise after the last of `steps` optimizer
    steps."""
    rising = optimizer.schedule.warmup_steps
    if rising >= steps:
        raise ConfigError(
            f"{key}.optimizer.schedule.warmup_steps={rising} is not below the {counted(steps, 'optimizer step')} of "
            f"the run; lower it, or raise {key}.epochs"
        )


def quality_of(metrics: Mapping[str, float], quality_metric: str) -> float | None:
    """The value of a metric, higher is better (with `-` before its name: its negative); None if it was not measured."""
    name = quality_metric.removeprefix("-")
    return metrics[name] * (-1 if name != quality_metric else 1) if name in metrics else None
