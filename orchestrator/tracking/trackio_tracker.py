"""trackio: a local store, or a Space of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.config.trackers import TrackioConfig
from orchestrator.tracking.tracked_run import TrackedRun


class TrackioTracker:
    """Sends metrics, alerts and files."""

    def __init__(self, config: TrackioConfig) -> None:
        self._trackio: Any = import_module("trackio")
        self._config = config

    def start(self, run: TrackedRun) -> str:
        """Begin a run, or go on with one: trackio knows runs by their names."""
        self._run = self._trackio.init(
            project=self._config.project,
            name=run.id or run.name,
            space_id=self._config.space,
            config=dict(run.config),
            resume="allow" if run.id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return str(self._run.name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert."""
        self._run.alert(title=f"{title} (step {step})", text=text, level=self._trackio.AlertLevel.WARN)

    def files(self, paths: Sequence[Path]) -> None:
        """Files of the project."""
        for path in paths:
            self._trackio.save(path, project=self._config.project)

    def finish(self, *, done: bool) -> None:
        """End the run; waits for what is still to be written."""
        self._run.finish()
