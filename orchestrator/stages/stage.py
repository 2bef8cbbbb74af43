"""The interface of a kind of training. Checkpoints, resuming, rescue and reports are in `orchestrator.stages.run`.

To add one, write a class with the abstract members; the other methods have a default that does nothing.
"""
# ruff: noqa: B027 (a method that a stage does not need does nothing)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.ranks.role_group import RoleGroup
from cluster.ranks.watch import Rank
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.report.evaluation_results import SampleRow
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.card_metrics import StepWork


class Trainable(Protocol):
    """A role whose ranks can save and load all that training changes in them."""

    def save_state(self, folder: str | Path) -> dict[str, str]:
        """Write everything that `load_state` needs to continue exactly; path in `folder` → hash of this rank's files,
        which are on the disk."""

    def begin_saving(self, folder: str | Path) -> dict[str, str]:
        """Copy all that `save_state` would write, and write it in a thread."""

    def written(self) -> dict[str, str] | None:
        """What `save_state` would return, once everything is on the disk; before, None. Raises the thread's error."""

    def load_state(self, folder: str | Path) -> None:
        """Continue where `save_state` was called."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Results of one step, such as `StepReport({"score/mean": 0.3})`."""

    metrics: Mapping[str, float]
    """Metrics by the names of `orchestrator.metrics`; the run adds times and memory."""
    samples: Sequence[SampleRow] = ()
    """Some responses of the step, for the user to read."""
    work: StepWork | None = None
    """The models' work, for the used share of the GPUs' arithmetic; None if it is not known."""
    ledger: Mapping[str, Any] | None = None
    """What became of the samples that the step has generated, as a line of the ledger; None if it has generated none.
    """
    keep: Callable[[Path], None] | None = None
    """Writes all of these samples to a file; None: they are not kept."""
    failed: Exception | None = None
    """What has failed when the groups had learned. The step counts: it is told and saved, then this ends the run."""


class Stage(ABC):
    """A training in progress: the driver's state, one step, and the groups whose weights it changes."""

    @property
    @abstractmethod
    def cluster(self) -> RayCluster:
        """The cluster on which the groups run."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of steps of the whole run."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Number of steps done."""

    @property
    @abstractmethod
    def trained(self) -> Mapping[str, RoleGroup[Any]]:
        """Role → group of `Trainable` ranks, whose states are in a checkpoint beside the driver's."""

    @property
    def trained_ranks(self) -> list[Rank]:
        """The ranks of these groups."""
        return [rank for group in self.trained.values() for rank in group.ranks]

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The driver's state after `step` steps, as plain values; it has the key `step`."""

    @abstractmethod
    def load_state(self, checkpoint: Checkpoint) -> None:
        """Restore the driver's state from `checkpoint`; the groups load theirs afterwards."""

    @abstractmethod
    def one_step(self, clock: Clock) -> StepReport:
        """Train one step. In the clock's phases `update` and `retrain` the groups change: from the first of them on,
        only the whole step can be saved. A later phase `evaluate`, with `step` already increased, may be interrupted
        without losing the step. What fails after the update, where all else is known, belongs into
        `StepReport.failed`."""

    @abstractmethod
    def save_models(self) -> None:
        """Save the trained models after the last step."""

    @abstractmethod
    def save_models_in(self, folder: Path) -> None:
        """Save the trained models as they are now, each in a folder of its role's name, whole or not at all."""

    def check_ledger(self) -> None:
        """Called at the end of the run: TetrarchError unless the ledger says what became of every sample."""

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations; 0: only before and after training."""
        return 0

    def evaluate(self, label: str) -> None:
        """Evaluate the trained models, and report the result. `label`: `before`, `after` or `step N`."""

    @property
    def evaluated(self) -> bool:
        """False if the evaluation that is due after the current step has not been made: the run was interrupted."""
        return True

    @property
    def scores(self) -> Mapping[int, float]:
        """Step → score of its evaluation, higher is better, for `checkpoint.keep_best`."""
        return {}

    @property
    def is_best(self) -> bool:
        """Whether the models of the current step are the best so far, and are not kept yet."""
        return False

    def keep_models(self) -> None:
        """Keep the models of the current step, of which there is a checkpoint: they are the best so far."""

    @property
    def best(self) -> int | None:
        """The step whose models `save_models` leaves; None: the last one."""
        return None

    @property
    def why_end(self) -> str:
        """Why the run ends now, before its last step; empty: it goes on."""
        return ""

    def after_step(self, told: StepReport) -> None:
        """React to a step that has been reported; StopTraining ends the run with a checkpoint, RollBack sends it back
        to an earlier one."""

    def fallback(self, steps: Sequence[int]) -> Sequence[int]:
        """Of the `steps` that have a checkpoint those that must stay because the run may go back to them."""
        return ()

    def loaded(self) -> None:
        """Called after the groups have loaded their state: update what depends on it."""

    def before_save(self) -> None:
        """Called before a checkpoint: check that the state is worth saving, and free memory for it."""

    def before_rescue(self, error: BaseException) -> None:
        """Called before a checkpoint because of `error`, at any point of a step before its update: free memory for
        it."""

    def explain(self, error: Exception) -> Exception:
        """The error to raise for `error` after the rescue: the same, or one that says more."""
        return error

    @property
    def batch(self) -> Any | None:
        """The training data of the current step, for `save_batch`; None if there is nothing to save when it fails."""
        return None
