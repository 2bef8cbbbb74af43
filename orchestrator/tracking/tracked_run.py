"""What a tracker is told of a run, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, as a tracker sees it."""

    folder: Path
    """Its `run_dir`."""
    name: str
    title: str
    """The kind of training, such as `PPO`."""
    config: Mapping[str, Any]
    """The resolved configuration without secrets."""
    id: str | None = None
    """The tracker's own name of the run that goes on; None for a new run."""


class Tracker(Protocol):
    """A service or a store. One thread calls all methods, `start` first and `finish` last; any may raise."""

    def start(self, run: TrackedRun) -> str | None:
        """Begin a run, or go on with `run.id`; returns the tracker's own name of the run, for later."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, all finite."""

    def alert(self, step: int, title: str, text: str) -> None:
        """A warning for who watches the run."""

    def files(self, paths: Sequence[Path]) -> None:
        """Upload files of the run's folder."""

    def finish(self, *, done: bool) -> None:
        """End the run. `done`: it has not failed."""


def but_settings(paths: Sequence[Path]) -> list[Path]:
    """The files without the run's `config.yaml`, for trackers that link to files instead of copying them and write one
    of that name themselves: they would write it through the link. They have the configuration from `start`."""
    return [path for path in paths if path.name != "config.yaml"]
