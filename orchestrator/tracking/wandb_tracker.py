"""Weights & Biases: online, or offline into the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.config.trackers import WandbConfig
from orchestrator.tracking.tracked_run import TrackedRun, but_settings

STEP = "step"
"""The metric over which all others are drawn: a resumed run may log a step again, which W&B's own counter forbids."""
RECORDED: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,  # the command line, paths, who has started it
    "host": "",  # or it is looked up
    "x_save_requirements": False,
}
"""Settings of W&B: of the machine only its load is recorded. A command line may hold secrets."""


class WandbTracker:
    """Sends metrics, alerts and files. Neither code, uncommitted changes, the terminal, the command line, the machine's
    name nor its packages are recorded."""

    def __init__(self, config: WandbConfig) -> None:
        self._wandb: Any = import_module("wandb")
        self._config = config

    def start(self, run: TrackedRun) -> str:
        """Begin a run, or go on with one."""
        config = self._config
        self._run = self._wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags or None,
            name=run.name,
            job_type=run.title,
            config=dict(run.config),
            dir=str(run.folder),
            mode=config.mode,
            id=run.id,
            resume="allow" if run.id else None,
            settings=self._wandb.Settings(**RECORDED, silent=True),
        )
        self._folder = run.folder
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        return str(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        self._run.log({STEP: step, **metrics})

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert, which W&B sends on by mail or Slack, as its user has set."""
        self._run.alert(title=f"{title} (step {step})", text=text, level=self._wandb.AlertLevel.WARN)

    def files(self, paths: Sequence[Path]) -> None:
        """Files under their names in the run's folder, but `config.yaml`, which W&B writes itself."""
        for path in but_settings(paths):
            self._run.save(str(path), base_path=str(self._folder), policy="now")

    def finish(self, *, done: bool) -> None:
        """End the run; waits for what is still to be sent."""
        self._run.finish(exit_code=0 if done else 1)
