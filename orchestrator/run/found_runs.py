"""The runs below folders, each with the state that it really is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.report.run_files import STATE_FILE, read_record
from orchestrator.report.terminal_lines import shown
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import SET_ASIDE
from orchestrator.run.run_lock import state_now

DEPTH = 3
"""How deep below a named folder runs are looked for."""
NUMBERS = 2
"""Metrics of a run's line."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A line of `tetrarch runs`."""

    run: str
    kind: str
    """Such as `PPO`."""
    state: str
    """`running`, `done`, `stopped`, `failed`; `interrupted`: it ended without saying so; `damaged`: see `numbers`."""
    step: int
    steps: int
    """Of the whole run; 0: not known."""
    numbers: str
    """The main metrics of its last step."""
    resumes: int | None
    """The step from which `--resume` goes on; None: there is no checkpoint."""
    started: str


def found_runs(folders: Sequence[Path]) -> Iterator[FoundRun]:
    """The runs in `folders` and below, each once. ConfigError for a folder that does not exist."""
    return map(_run, run_folders(folders))


def run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """The folder of each run in `folders` and below, each once. ConfigError for a folder that does not exist."""
    seen = set[Path]()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; name one that holds runs, such as runs")
        patterns = ("*/" * depth + STATE_FILE for depth in range(DEPTH + 1))
        for file in (file for pattern in patterns for file in folder.glob(pattern)):
            if SET_ASIDE not in file.parts and file.resolve() not in seen:
                seen.add(file.resolve())
                yield file.parent


def _run(run_dir: Path) -> FoundRun:
    resumes = next(iter(reversed(Checkpoints(run_dir / "checkpoints", keep=1).steps())), None)
    try:
        record = read_record(run_dir)
    except ValueError as error:
        return FoundRun(str(run_dir), "", "damaged", 0, 0, str(error), resumes, "")
    state, last = record.state, record.metrics[-1] if record.metrics else {}
    step = int(last.get("step", 0))
    now = state_now(run_dir, state.status)
    return FoundRun(str(run_dir), state.title, now, step, state.steps, _numbers(last), resumes, state.started)


def _numbers(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{one.name} {one.value}" for one in list(shown(metrics))[:NUMBERS])
