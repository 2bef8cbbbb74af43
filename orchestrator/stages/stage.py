"""What a kind of training says of itself. Checkpoints, resuming, rescue and reports are `orchestrator.stages.run`'s.

To add one, write a class with the abstract members; the other methods have a default that does nothing.
"""
# ruff: noqa: B027 (a method that a stage does not need does nothing)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.ranks.role_group import RoleGroup
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.report.evaluation_results import SampleRow
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.card_metrics import StepWork


class Trainable(Protocol):
    """A role whose ranks can save and load all that training changes in them."""

    def save_state(self, folder: str | Path) -> None:
        """Write everything that `load_state` needs to continue exactly."""

    def load_state(self, folder: str | Path) -> None:
        """Continue where `save_state` was called."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step tells, such as `StepReport({"score/mean": 0.3})`."""

    metrics: Mapping[str, float]
    """By the names of `orchestrator.metrics`; times and memory are added by the run."""
    samples: Sequence[SampleRow] = ()
    """Some responses of the step, for the user to read."""
    work: StepWork | None = None
    """What the models computed, for the share of the GPUs' arithmetic that was used; None where it is not known."""


class Stage(ABC):
    """A kind of training under way: the driver's state, one step, and the groups whose weights it changes."""

    @property
    @abstractmethod
    def cluster(self) -> RayCluster:
        """Where the groups run."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the whole run."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Steps done."""

    @property
    @abstractmethod
    def trained(self) -> Mapping[str, RoleGroup[Any]]:
        """Role → group of `Trainable` ranks: what is in a checkpoint beside the driver's state."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The driver's state after `step` steps, JSON-able; it has the key `step`."""

    @abstractmethod
    def load_state(self, checkpoint: Checkpoint) -> None:
        """Take the driver's state from `checkpoint`; the groups load theirs after it."""

    @abstractmethod
    def one_step(self, clock: Clock) -> StepReport:
        """Train one step. In the clock's phase `update` the groups change: from its begin on, only the whole step can
        be saved. A phase `evaluate` after it, with `step` counted up, may be interrupted without losing the step."""

    @abstractmethod
    def save_models(self) -> None:
        """Write what was trained, after the last step."""

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations; 0: none but before and after training."""
        return 0

    def evaluate(self, label: str) -> None:
        """Measure what is trained, and report it. `label`: `before`, `after` or `step N`."""

    def after_step(self, told: StepReport) -> None:
        """React to a step that has been reported; StopTraining ends the run with a checkpoint."""

    def loaded(self) -> None:
        """The groups have loaded their state too: bring what depends on it up to date."""

    def before_save(self) -> None:
        """A checkpoint is due: see that it is worth writing, and make room for it."""

    def before_rescue(self, error: BaseException) -> None:
        """A checkpoint is written because of `error`, at any point of a step before its update: make room for it."""

    def explain(self, error: Exception) -> Exception:
        """What to raise for `error`, after the rescue: the same, or one that says more."""
        return error

    @property
    def batch(self) -> Any | None:
        """What the step under way trains on, for `save_batch`; None where there is nothing to keep if it fails."""
        return None
