"""`tetrarch replay`: a run and a step flow in; the step is computed again from the checkpoint before it, in a folder of
its own; what differs flows out. The run itself is only read.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.labelling import ANSWERS
from orchestrator.config.loading import apply_override
from orchestrator.config.yaml_text import parse_yaml, to_yaml
from orchestrator.errors import ConfigError
from orchestrator.report.run_files import CONFIG_FILE, LINES, STATE_FILE, read_record
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.run_difference import RunDifference, run_difference
from orchestrator.stages.resume_proof import UNWATCHED, Started, clear, steps_in

PPO = "PPO"
"""Title of the runs of `tetrarch train`."""


def replayed(run_dir: Path, step: int, folder: Path, overrides: Sequence[str], limit_s: float) -> RunDifference:
    """Compute `step` again in `folder`, which is replaced, and compare it. ConfigError if the run has no checkpoint of
    the step before.

    Args:
        overrides: more of the configuration; secrets too, which the run's own does not hold.
    """
    checkpoint_before(run_dir, step)
    log = folder.with_name(f"{folder.name}.log")
    clear(folder, log)
    folder.mkdir()
    name = f"step-{step - 1:06d}"
    shutil.copytree(run_dir / "checkpoints" / name, folder / "checkpoints" / name, copy_function=_linked)
    for file in (*LINES, STATE_FILE, ANSWERS):
        if (run_dir / file).exists():
            shutil.copy2(run_dir / file, folder)
    command = [sys.executable, "-m", "orchestrator", "train", str(replayed_settings(run_dir, overrides, folder))]
    settings = ["alerts=null", "checkpoint.every=1", "checkpoint.keep=9", *UNWATCHED, f"run_dir={folder}"]
    command += [f"--resume-from={step - 1}", "--", *settings]
    done = folder / "checkpoints" / f"step-{step:06d}"
    with Started(command, log, limit_s) as started:
        started.until(lambda: steps_in(folder) >= step and done.exists())
    return run_difference(run_dir, folder, only=step)


def checkpoint_before(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint from which `step` begins. ConfigError if there is none, or no PPO run."""
    try:
        state = read_record(run_dir).state
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if state.title != PPO:
        raise ConfigError(f"{run_dir} holds no run of tetrarch train; name the run_dir of one")
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=1)
    if found := checkpoints.of_step(step - 1, content=True):
        return found
    kept = [str(saved + 1) for saved in checkpoints.steps() if saved < state.steps]
    raise ConfigError(
        f"{run_dir} has no whole checkpoint of step {step - 1}, from which step {step} begins; "
        + (f"steps that can be replayed: {', '.join(kept)}" if kept else "set checkpoint.every: 1 in the next run")
    )


def replayed_settings(run_dir: Path, overrides: Sequence[str], folder: Path) -> Path:
    """The run's configuration with the overrides, in a file that only its owner can read: they may be secrets."""
    data = parse_yaml((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    for override in overrides:
        apply_override(data, override)
    file = folder / "replayed.yaml"
    file.touch(mode=0o600)
    file.write_text(to_yaml(data), encoding="utf-8")
    return file


def _linked(source: str, target: str) -> None:
    """A second name of a file that nobody writes to; a copy where file systems cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
