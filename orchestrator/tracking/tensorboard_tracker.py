"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.config.trackers import TensorboardConfig
from orchestrator.tracking.tracked_run import TrackedRun


class TensorboardTracker:
    """Writes scalars, and alerts as texts."""

    def __init__(self, config: TensorboardConfig, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._resume_step = SummaryWriter, resume_step

    def start(self, run: TrackedRun) -> None:
        """Begin files in the folder `tensorboard`; what earlier ones say of steps after the resumed one is hidden."""
        purge = self._resume_step + 1 if self._resume_step else None
        self._writer = self._open(str(run.folder / "tensorboard"), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, on the disk at once."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def alert(self, step: int, title: str, text: str) -> None:
        """A text under `alerts`."""
        self._writer.add_text("alerts", text, step)

    def files(self, paths: Sequence[Path]) -> None:
        """Nothing: they are in the same folder."""

    def finish(self, *, done: bool) -> None:
        """Close the files."""
        self._writer.close()
