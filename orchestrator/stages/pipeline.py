"""`tetrarch pipeline`: resolved stages flow in; each runs as a process of its own, unless what it would do is done.

The state is written when a stage begins, every few seconds while it works, and when it has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.runtime.orders import SIGNALS
from orchestrator.display_text import duration
from orchestrator.errors import TetrarchError
from orchestrator.run.checkpoint import Checkpoints, trained_step
from orchestrator.run.pipeline_stages import PipelineStage
from orchestrator.run.pipeline_state import MISSING, PipelineState, StageRecord
from orchestrator.run.run_lock import wait_until_free
from orchestrator.stages.own_process import END_S, Tell, end_process, ends_with

WRITE_S = 5.0
"""Seconds between two writings of the state while a stage works."""


def run_stages(stages: Sequence[PipelineStage], state: PipelineState, folder: Path, tell: Tell) -> None:
    """Run each stage for which there is a reason, in order; TetrarchError names the first that fails."""
    texts = {stage.file: stage.file.read_bytes() for stage in stages}
    for number, stage in enumerate(stages, 1):
        if stage.file.read_bytes() != texts[stage.file]:
            raise TetrarchError(
                f"{stage.file} has changed since the pipeline began; start it again: it goes on from here"
            )
        lead = f"stage {number}/{len(stages)} {stage.name}"
        reasons = state.reasons(stage)
        if not reasons:
            took = duration(state.stages[stage.name].seconds)
            tell(f"{lead}: skipped; {stage.output} is there, and nothing that it depends on has changed (took {took})")
            continue
        flags = _begin(stage, state, lambda text, lead=lead: tell(f"{lead}: {text}"))  # type: ignore[misc]
        state.write(folder)
        tell(f"{lead}: tetrarch {stage.command} {stage.file} ({'; '.join(reasons)})")
        told = None if flags is None else _work(stage, flags, state, folder)
        _end(stage, state)
        state.write(folder)
        tell(f"{lead}: done in {duration(state.stages[stage.name].seconds)}; {stage.output}")
        if told is not None:
            raise told


def _begin(stage: PipelineStage, state: PipelineState, tell: Tell) -> list[str] | None:
    """Make way for the stage. The options with which it starts; None if its training had just ended."""
    before, depends = state.stages.get(stage.name), state.depends(stage)
    if before is not None and not before.done:
        _wait_for_its_end(stage, tell)
    if before is not None and not before.done and before.depends == depends and stage.trains:
        if stage.command == "train" and trained_step(stage.run_dir) == getattr(stage.config, "steps", None):
            return None
        folders = [Path(run.run_dir) / "checkpoints" for run in stage.config.runs]
        if any(Checkpoints(folder, keep=1).newest(content=True) for folder in folders):
            return ["--resume"]
    if stage.trains:
        for path in stage.folders:
            _set_aside(path, tell)
    made = [*dict.fromkeys(str(path) for path in (*stage.folders, *stage.made))]
    state.stages[stage.name] = StageRecord(depends, made)
    return []


def _wait_for_its_end(stage: PipelineStage, tell: Tell) -> None:
    """A stage whose pipeline was killed saves its last step and ends; until then it holds its folder."""
    folders = [Path(run.run_dir) for run in stage.config.runs]
    wait_until_free(folders, END_S, lambda error: tell(f"waiting for the end of an earlier start ({error})"))


def _set_aside(path: Path, tell: Tell) -> None:
    """Give a folder of an earlier start another name."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    path.rename(aside)
    tell(f"what {path} held is in {aside}")


def _end(stage: PipelineStage, state: PipelineState) -> None:
    record = state.stages[stage.name]
    record.output = state.output_of(stage)
    if record.output == MISSING:
        raise TetrarchError(f"stage {stage.name} has ended without an error, but {stage.output} is not there")
    record.done = True


def command_of(stage: PipelineStage, flags: Sequence[str]) -> list[str]:
    """The words that start a stage."""
    return [sys.executable, "-m", "orchestrator", stage.command, str(stage.file), *flags, "--", *stage.overrides]


def _work(stage: PipelineStage, flags: Sequence[str], state: PipelineState, folder: Path) -> KeyboardInterrupt | None:
    """Run the stage to its end. Ctrl-C and SIGTERM are passed on to it, and raised when it has ended early; or returned
    if it has finished nevertheless."""
    record, began = state.stages[stage.name], time.monotonic()
    before_s = record.seconds
    with _passing_signals_on() as (told, to):
        process = subprocess.Popen(command_of(stage, flags), start_new_session=True, preexec_fn=ends_with(os.getpid()))
        to.append(process)
        for number in told:
            process.send_signal(number)
        try:
            while process.poll() is None:
                record.seconds = before_s + time.monotonic() - began
                state.write(folder)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(WRITE_S)
        except BaseException:
            end_process(process)
            raise
    record.seconds = before_s + time.monotonic() - began
    state.write(folder)
    order = (
        SIGNALS[told[0]](f"the stage {stage.name} was under way; the same command goes on with it") if told else None
    )
    if process.returncode and order is not None:
        raise order
    if process.returncode:
        raise _failure(stage, process.returncode)
    return order


def _failure(stage: PipelineStage, code: int) -> TetrarchError:
    how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    text = f"stage {stage.name} (tetrarch {stage.command} {stage.file}) {how}; what it said stands above. Once that is "
    return TetrarchError(text + "corrected, the same command goes on from there")


@contextmanager
def _passing_signals_on() -> Iterator[tuple[list[signal.Signals], list[subprocess.Popen[bytes]]]]:
    """Context in which signals to end are passed on to the processes in the second list; the first list has them."""
    told: list[signal.Signals] = []
    processes: list[subprocess.Popen[bytes]] = []

    def hear(number: int, frame: Any) -> None:
        told.append(signal.Signals(number))
        for process in processes:
            process.send_signal(number)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield told, processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
