"""The runs that the viewer shows: folders of the command line flow in, runs by name flow out.

A request says the name of a run, never a path: only what stands on the shelf can be read.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.report.run_files import (
    ALERTS_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    SAMPLES_FOLDER,
    STATE_FILE,
    RunRecord,
    read_record,
)
from orchestrator.report.terminal_lines import shown
from orchestrator.run.found_runs import run_folders
from orchestrator.run.resuming import SET_ASIDE
from orchestrator.run.run_lock import state_now
from orchestrator.viewer.errors import NotThere

RECORD_FILES = (METRICS_FILE, EVALUATION_FILE, SAMPLES_FILE, CONFIG_FILE, STATE_FILE)
"""Files of a record."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in the list. Example: `RunLine("runs/smoke", "smoke", "PPO", "running", 4, 10, "+0.512", …)`."""

    run: str
    """Its name: its folder as it was found."""
    short: str
    """The folder's own name."""
    kind: str
    state: str
    """`running`, `done`, `stopped`, `failed`; `interrupted`: it ended without saying so; `damaged`: see `problem`."""
    step: int
    steps: int
    """Of the whole run; 0: not known."""
    numbers: list[tuple[str, str]]
    """Name and value of the main metrics of its last step."""
    started: str
    problem: str
    """What is wrong with its files; empty if nothing is."""


class Shelf:
    """Runs by name. A run that begins while the viewer is open joins them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """ConfigError for a folder that does not exist, and if there is no run."""
        self._folders, self._runs = folders, dict[str, Path]()
        self._records = dict[str, tuple[Any, RunRecord]]()
        self._lock = threading.Lock()
        if not self.look():
            places = ", ".join(map(str, folders))
            raise ConfigError(
                f"there is no run in {places} (a run's folder holds {STATE_FILE} or {METRICS_FILE}); name a run's "
                "folder or one that holds runs, or start one first: tetrarch train CONFIG"
            )

    def look(self) -> list[str]:
        """The names of all runs, those of new ones too."""
        with self._lock:
            for folder in [folder for folder in self._folders if folder.is_dir() or not self._runs]:
                inside = list(run_folders([folder]))
                if not inside and (folder / METRICS_FILE).is_file():
                    inside = [folder]
                for run in inside:
                    self._runs.setdefault(str(run), run)
            return [name for name, run in self._runs.items() if run.is_dir()]

    @property
    def first(self) -> list[str]:
        """The runs that are shown first, if each named folder is a run; else none."""
        return [str(folder) for folder in self._folders] if {*map(str, self._folders)} <= {*self._runs} else []

    def folder(self, name: str) -> Path:
        """NotThere if there is no run of that name."""
        if name not in self._runs:
            raise NotThere(f"{name!r} is no run that this viewer shows")
        return self._runs[name]

    def record(self, name: str) -> RunRecord:
        """What the files of a run hold; read again when they have changed. ValueError for damaged files."""
        run_dir = self.folder(name)
        state = _states(run_dir, RECORD_FILES)
        with self._lock:
            known = self._records.get(name)
        if known is None or known[0] != state:
            known = state, read_record(run_dir)
            with self._lock:
                self._records[name] = known
        return known[1]

    def version(self, name: str) -> str:
        """Another text whenever a file of the run that the viewer shows has changed."""
        return str(hash(_states(self.folder(name), (*RECORD_FILES, ALERTS_FILE, SAMPLES_FOLDER))))

    def line(self, name: str) -> RunLine:
        """The run's line in the list."""
        run_dir = self.folder(name)
        short = run_dir.resolve().name
        try:
            record = self.record(name)
        except ValueError as error:
            return RunLine(name, short, "", "damaged", 0, 0, [], "", str(error))
        state, last = record.state, record.metrics[-1] if record.metrics else {}
        now = state_now(run_dir, state.status)
        numbers = [(one.name, one.value) for one in shown(last)]
        step = int(last.get("step", 0))
        return RunLine(name, short, state.title, now, step, state.steps, numbers, state.started, "")

    def set_aside(self, name: str) -> list[str]:
        """Folders with what a run had made after the checkpoint from which it went on."""
        return sorted(
            str(part) for part in (self.folder(name) / SET_ASIDE).glob("*") if (part / METRICS_FILE).is_file()
        )


def _states(run_dir: Path, names: Sequence[str]) -> tuple[tuple[int, int] | None, ...]:
    """Time and size of each file; None if it is missing."""
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            seen = (run_dir / name).stat()
            found.append((seen.st_mtime_ns, seen.st_size))
        except OSError:
            found.append(None)
    return tuple(found)
