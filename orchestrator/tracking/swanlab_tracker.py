"""SwanLab: online, or into the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.config.trackers import SwanlabConfig
from orchestrator.tracking.tracked_run import TrackedRun, but_settings

PRIVATE: dict[str, Any] = {
    "terminal": {"proxy_type": "none"},
    "probe": {"git": False, "requirements": False, "monitor": False},
}
"""Neither the terminal, the code's place nor packages are recorded."""


class SwanlabTracker:
    """Sends metrics, alerts (as texts) and files."""

    def __init__(self, config: SwanlabConfig) -> None:
        self._swanlab: Any = import_module("swanlab")
        self._config = config

    def start(self, run: TrackedRun) -> str | None:
        """Begin a run, or go on with one, if it is online."""
        config, online = self._config, self._config.mode == "online"
        self._folder = run.folder
        self._run = self._swanlab.init(
            project=config.project,
            workspace=config.workspace,
            name=run.name,
            job_type=run.title,
            config=dict(run.config),
            log_dir=str(run.folder / "swanlog"),
            mode=config.mode,
            settings=self._swanlab.Settings(**PRIVATE),
            **({"id": run.id, "resume": "allow"} if online and run.id else {}),
        )
        return str(self._run.id) if online else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """A text under `alerts`: SwanLab has no alerts of a run."""
        self._run.log_text(key="alerts", data=text, caption=title, step=step)

    def files(self, paths: Sequence[Path]) -> None:
        """Files of the run but `config.yaml`, which SwanLab writes itself; it keeps them online only."""
        if self._config.mode == "online":
            for path in but_settings(paths):
                self._run.save(str(path), base_path=str(self._folder), policy="now")

    def finish(self, *, done: bool) -> None:
        """End the run; waits for what is still to be sent."""
        self._run.finish(state="success") if done else self._run.finish(state="crashed", error="the run has failed")
