"""Checks of the folders that a command writes to: they can be written, are on lasting storage, and are free.

A configuration flows in; nothing flows out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile

from orchestrator.checks.tracker_packages import check_trackers
from orchestrator.config.base import BaseConfig
from orchestrator.config.labelling import ANSWERS
from orchestrator.config.reward_training import COMPARISONS, QUALITY
from orchestrator.errors import ConfigError
from orchestrator.report.run_files import (
    BEST_OF_N,
    CONFIG_FILE,
    EVALUATED,
    EVALUATED_ROWS,
    HTML_FILE,
    STATE_FILE,
    VERDICTS,
)
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.resuming import Resume, checkpoint_to_resume
from orchestrator.run.run_lock import LOCK, check_free
from orchestrator.timeline.trace_file import TRACE_FILE
from orchestrator.tracking.trackers import IDS_FILE
from roles.text.template_date import DAY, keep_day

UNPACKED = ("runtime_resources", "working_dir_files")
"""Path under which Ray unpacks the working directory of a job on each node, for the lifetime of the job."""

TRACKED = {"tensorboard", "wandb", "swanlog", IDS_FILE}
"""What the trackers leave in `run_dir`."""
BEFORE_THE_FIRST_STEP = {CONFIG_FILE, STATE_FILE, HTML_FILE, TRACE_FILE, COMPARISONS, ANSWERS, *TRACKED}
"""Files that a run writes before its first step is done."""
LOGS = "logs"
"""Folder in `run_dir` that a failed start may leave."""


def check_run_dir(config: BaseConfig, resume: Resume) -> Checkpoint | None:
    """`run_dir` can be written, and holds no other run. The checkpoint that the run goes on from, if it goes on.

    From here on, chat templates write the day of that run as today.
    """
    folder = Path(config.run_dir)
    check_writable(folder, config.folder_key)
    check_free(folder)
    check_trackers(config.report)
    checkpoint = checkpoint_to_resume(config, resume)
    keep_day(checkpoint.state.get(DAY) if checkpoint else None)
    if checkpoint is not None:
        return checkpoint
    found = sorted(entry.name for entry in folder.iterdir() if _is_of_a_run(entry)) if folder.is_dir() else []
    if found and not _ended_before_its_first_step(folder, set(found)):
        stands = Checkpoints(folder / "checkpoints", config.checkpoint.keep).newest() is not None
        raise ConfigError(
            f"run_dir={folder} is not empty (it holds {', '.join(found[:3])}{', …' if len(found) > 3 else ''}); "
            + ("say --resume to go on with that run, " if stands else "no checkpoint is in it: ")
            + f"choose another {config.folder_key}, or remove it"
        )
    return None


def _is_of_a_run(entry: Path) -> bool:
    """Whether something in `run_dir` is more than its lock, logs of a failed start, what other commands say of the
    untrained policy, a reward model that was trained there, or another run with a folder of its own."""
    if not entry.is_dir():
        return not entry.name.startswith(LOCK) and entry.name not in (EVALUATED, EVALUATED_ROWS, VERDICTS, BEST_OF_N)
    if (entry / STATE_FILE).is_file():
        return False
    files = [file.relative_to(entry.parent) for file in entry.rglob("*") if file.is_file()]
    return all(file.name != QUALITY for file in files) and any(LOGS not in file.parts for file in files)


def _ended_before_its_first_step(folder: Path, found: set[str]) -> bool:
    """Whether `run_dir` holds only the files of a run that failed or was stopped before its first step was done."""
    if not (found <= BEFORE_THE_FIRST_STEP and (folder / STATE_FILE).is_file()):
        return False
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and state.get("status") in ("failed", "stopped")


def check_output(folder: str, key: str, made: str, resume: Resume) -> None:
    """The folder of the trained model can be written, and is empty; or it holds the model of the run that goes on,
    which has a file `made`."""
    output = Path(folder)
    check_writable(output, key)
    if resume is not None and (output / made).is_file():
        return
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"{key}={output} is not empty; remove it, or choose another folder")


def check_lasting(folder: Path, key: str) -> None:
    """Raise ConfigError for a folder that Ray removes after the job."""
    if UNPACKED in pairwise(Path(os.path.realpath(folder)).parts):
        raise ConfigError(
            f"{key}={folder} lies in the job's own copy of the working directory, and would be lost with it; use an "
            "absolute path on storage that all nodes share"
        )


def check_writable(folder: Path, key: str) -> None:
    """Raise ConfigError unless the folder can be written to, on storage that lasts."""
    check_lasting(folder, key)
    check_access(folder, key)


def check_access(folder: Path, key: str) -> None:
    """Raise ConfigError unless the folder exists or can be made, and can be written to."""
    existing = folder.absolute()
    while not os.path.exists(existing):  # also False where the user may not look, or a link leads to itself
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{key}={folder}: {existing} is a file; choose a folder")
    if why := _not_writable(existing):
        raise ConfigError(f"{key}={folder}: {existing} cannot be written to ({why}); choose another folder")


def _not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder; None if one can. /proc and full or read-only disks give themselves away only
    when one is made."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return "no permission"
    try:
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_rows(file: Path, key: str) -> None:
    """The rows of an option can be written to `file`, and their numbers beside it; folders are made for them."""
    check_writable(file.absolute().parent, key)
    for one in filter(os.path.lexists, (file, file.with_suffix(".json"))):
        check_file(one, key)


def check_file(file: Path, key: str) -> None:
    """The file of an option can be written; its folder must be there."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{key}={file}: the folder {folder} does not exist; make it, or choose another one")
    if file.is_dir():
        raise ConfigError(f"{key}={file} is a folder; name a file in it")
    there = os.path.exists(file)
    if why := _not_writable(folder) if not there else None if os.access(file, os.W_OK) else "no permission":
        raise ConfigError(f"{key}={file} cannot be written ({why}); choose another file")
