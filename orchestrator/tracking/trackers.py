"""All trackers of a run. None of them stops or delays it: each has a thread, and what fails or hangs is told once.

Metrics, alerts and files flow in and are sent while the run goes on.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.config.trackers import AnyTrackerConfig, TensorboardConfig
from orchestrator.tracking.metric_aliases import with_aliases
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from orchestrator.tracking.swanlab_tracker import SwanlabTracker
from orchestrator.tracking.tensorboard_tracker import TensorboardTracker
from orchestrator.tracking.tracked_run import TrackedRun, Tracker
from orchestrator.tracking.trackio_tracker import TrackioTracker
from orchestrator.tracking.wandb_tracker import WandbTracker
from roles.durable import replace_durably
from roles.redaction import without_credentials

MADE_BY: dict[str, Callable[[Any], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "swanlab": SwanlabTracker,
    "trackio": TrackioTracker,
}
"""Type of a tracker → its class; TensorBoard's needs the resumed step too."""
IDS_FILE = "trackers.json"
"""File in `run_dir` with the trackers' own names of the run."""
UNSENT = 1000
"""Most steps and alerts that may wait for a tracker; more mean that it hangs."""


class Trackers:
    """The trackers of one run.

    Args:
        tell: shows the user a line; called from other threads too.
        wait_s: seconds for which the end of the run waits for all of them together.
    """

    def __init__(
        self,
        configs: Sequence[AnyTrackerConfig],
        run: TrackedRun,
        resume_step: int,
        tell: Callable[[str], None],
        wait_s: float,
    ) -> None:
        self._tell, self._wait_s = tell, wait_s
        self._ids = _Ids(run.folder / IDS_FILE, fresh=not resume_step)
        self._lanes: list[_Lane] = []
        keys = Counter[str]()
        for config in configs:
            key = _project_of(config)
            keys[key] += 1
            key = f"{key} #{keys[key]}" if keys[key] > 1 else key
            try:
                tracker = _made(config, resume_step)
            except Exception as error:
                tell(_failed(config.type, error))
                continue
            lane = _Lane(config.type, tracker, tell, aliases=config.aliases)
            own = replace(run, name=config.name or run.name, id=self._ids.of.get(key))
            lane.put(partial(self._start, tracker, key, own))
            self._lanes.append(lane)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step; those that are not finite are left out. Returns at once."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        for lane in self._lanes:
            numbers = with_aliases(finite) if lane.aliases else finite
            lane.put(partial(lane.tracker.log, step, numbers))

    def alert(self, step: int, title: str, text: str) -> None:
        """A warning for who watches the run. Returns at once."""
        for lane in self._lanes:
            lane.put(partial(lane.tracker.alert, step, title, text))

    def close(self, paths: Sequence[Path], *, done: bool, left_s: float = math.inf) -> None:
        """Send the files that are there, end the run, and wait until all is sent, or the time is over. `left_s`: most
        seconds that may pass, if they are fewer than `wait_s`."""
        there, wait_s = [path for path in paths if path.is_file()], min(self._wait_s, left_s)
        until = time.monotonic() + wait_s
        for lane in self._lanes:
            lane.end(partial(lane.tracker.files, there), partial(lane.tracker.finish, done=done))
        for lane in self._lanes:
            if not lane.ended(max(until - time.monotonic(), 0.0)):
                self._tell(
                    f"{lane.name} has not taken everything within {wait_s:.3g} s (report.trackers_s, or what was left "
                    "of deadlines.grace_s); the run's own files have it all"
                )

    def _start(self, tracker: Tracker, key: str, run: TrackedRun) -> None:
        self._ids.keep(key, tracker.start(run))


class _Lane:
    """One tracker and its thread."""

    def __init__(self, name: str, tracker: Tracker, tell: Callable[[str], None], *, aliases: bool) -> None:
        self.name, self.tracker, self.aliases, self._tell = name, tracker, aliases, tell
        self._left: queue.Queue[Callable[[], None] | None] = queue.Queue(UNSENT)
        self._gone = self._hangs = self._began = False
        self._failed = self._told = False
        self._last: Sequence[Callable[[], None]] = ()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, send: Callable[[], None]) -> None:
        """Send something after what is there; never waits."""
        if not self._gone:
            try:
                self._left.put_nowait(send)
            except queue.Full:
                self._gone = self._hangs = self._told = True
                self._tell(f"{self.name} takes nothing any more: it hangs. The run goes on without it")

    def end(self, files: Callable[[], None], finish: Callable[[], None]) -> None:
        """Nothing comes any more but these. A run that has begun is finished also if something before has failed."""
        self._gone, self._last = True, (files, finish)
        with suppress(queue.Full):  # it hangs
            self._left.put_nowait(None)

    def ended(self, within_s: float) -> bool:
        """Whether all is sent, or the user knows that it is not; waits for it."""
        if not self._hangs:
            self._thread.join(within_s)
        return self._told or not self._thread.is_alive()

    def _work(self) -> None:
        while (send := self._left.get()) is not None:
            if not self._failed:
                self._try(send)
        files, finish = self._last
        if not self._failed:
            self._try(files)
        if self._began:
            self._try(finish)

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
            self._began = True
        except BaseException as error:  # whatever it is, the run goes on
            self._gone = self._failed = True
            if not self._told:
                self._told = True
                self._tell(_failed(self.name, error))


class _Ids:
    """The file of the trackers' own names of the run."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path, self._lock = path, threading.Lock()
        self.of: dict[str, str] = {}
        if not fresh and path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                self.of = {str(key): str(value) for key, value in known.items()}
            except (OSError, ValueError, AttributeError):
                self.of = {}  # the trackers begin new runs

    def keep(self, key: str, name: str | None) -> None:
        """Remember a tracker's name of the run, if it can go on with it."""
        with self._lock:
            if name is not None and self.of.get(key) != name:
                self.of[key] = name
                replace_durably(self._path, (json.dumps(self.of) + "\n").encode())


def _project_of(config: AnyTrackerConfig) -> str:
    """What a tracker's own name of the run belongs to: its type, and the project there."""
    where = getattr(config, "project", None) or getattr(config, "experiment", "")
    return f"{config.type} {where}".strip()


def _made(config: AnyTrackerConfig, resume_step: int) -> Tracker:
    if isinstance(config, TensorboardConfig):
        return TensorboardTracker(config, resume_step)
    return MADE_BY[config.type](config)


def _failed(name: str, error: BaseException) -> str:
    said = without_credentials(str(error)).strip().splitlines()
    why = f"{type(error).__name__}: {said[0][:300]}" if said else type(error).__name__
    return f"{name} has failed ({why}); the run goes on without it, and its own files have everything"
