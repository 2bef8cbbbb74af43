"""MLflow: a tracking server, or a local store."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestrator.config.trackers import MlflowConfig
from orchestrator.tracking.tracked_run import TrackedRun

LONGEST = 6000
"""Characters of a parameter's value that MLflow takes."""
AT_ONCE = 100
"""Parameters that MLflow takes in one request."""
_OTHERS = re.compile(r"[^\w\-. /]")
"""What MLflow takes in no name."""


class MlflowTracker:
    """Sends metrics, parameters, alerts (as tags) and files."""

    def __init__(self, config: MlflowConfig) -> None:
        self._mlflow: Any = import_module("mlflow")
        self._config = config

    def start(self, run: TrackedRun) -> str:
        """Begin a run, or go on with one."""
        name = self._config.experiment
        self._client = client = self._mlflow.MlflowClient(tracking_uri=self._config.uri)  # makes a local store
        if run.id:
            client.update_run(run.id, status="RUNNING")
            self._id = run.id
            return self._id
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        self._id = str(client.create_run(experiment, run_name=run.name, tags={"stage": run.title}).info.run_id)
        parameter = self._mlflow.entities.Param
        flat = [parameter(_OTHERS.sub("_", key)[:250], str(value)[:LONGEST]) for key, value in _flat(run.config)]
        for start in range(0, len(flat), AT_ONCE):
            client.log_batch(self._id, params=flat[start : start + AT_ONCE])
        return self._id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step."""
        now, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        found = [metric(_OTHERS.sub("_", key), value, now, step) for key, value in metrics.items()]
        self._client.log_batch(self._id, metrics=found)

    def alert(self, step: int, title: str, text: str) -> None:
        """A tag: MLflow has no alerts."""
        self._client.set_tag(self._id, _OTHERS.sub("_", f"alert step {step} {title}"), text[:LONGEST])

    def files(self, paths: Sequence[Path]) -> None:
        """Artifacts of the run."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def finish(self, *, done: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FINISHED" if done else "FAILED")


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
