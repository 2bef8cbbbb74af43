"""The report of a run: metrics flow in step by step; the terminal, JSON lines, TensorBoard and one HTML page flow out.

What is on disk after each step is enough for the page of a dead run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.errors import Terminated
from cluster.runtime.last_resort import at_most
from cluster.runtime.orders import ORDERS
from orchestrator.config.trackers import AnyTrackerConfig, TensorboardConfig
from orchestrator.errors import RollBack, StopTraining
from orchestrator.known_metrics import check_known
from orchestrator.metrics import METRICS
from orchestrator.report import run_files
from orchestrator.report.alert_lines import Alert, WentBack
from orchestrator.report.evaluation_results import EvaluationResult, SampleRow, evaluation_metrics
from orchestrator.report.file_writer import FileWriter
from orchestrator.report.page import render_report
from orchestrator.report.progress import Progress, make_progress
from orchestrator.report.reliability import ReliabilityBin
from orchestrator.report.run_files import RunState, append_line, drop_after, read_record, write_state
from orchestrator.report.terminal_lines import evaluation_lines, sample_lines, step_sample
from orchestrator.timeline.diary import Timeline
from orchestrator.timeline.part_of_run import PartOfRun
from orchestrator.tracking.tracked_run import TrackedRun
from orchestrator.tracking.trackers import Trackers
from roles.durable import sync_folder

__all__ = ["Reporter", "render_report"]


class Reporter:
    """The reports of a run, as a context manager; leaving it, also by an error, flushes all files and writes
    `report.html`.

    Args:
        run_dir: created if it is missing.
        title: the kind of training, such as `PPO`.
        data: what was read to train on, in lines.
        versions: package → its version here.
        facts: what the run is made on, by name.
        models: key of a model of the hub → its name and commit.
        trackers: where metrics, alerts and the report are sent besides; `trackers_s`: seconds for which the end of the
            run waits for them.
        trace: whether to write the timeline, `trace.json.gz`.
        steps: number of steps of the whole run; 0 if it is not known yet.
        config_yaml: the resolved configuration, secrets redacted.
        resume_step: entries of the files after this step are dropped; 0 starts new files.
        targets: metric → the value that a controller steers it to, drawn in its chart.
        sample_every: steps between responses that the terminal shows; 0: none.
        save_s: seconds in which a file of samples must be written, and in which the driver must write its own files: a
            disk that does not answer ends the process.
        progress: the display to use instead of the terminal's or plain lines.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        name: str,
        title: str = "",
        data: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        facts: Mapping[str, str] | None = None,
        models: Mapping[str, str] | None = None,
        steps: int = 0,
        config_yaml: str,
        tensorboard: bool = True,
        trackers: Sequence[AnyTrackerConfig] = (),
        trackers_s: float = 60.0,
        trace: bool = False,
        html: bool = True,
        sample_every: int = 0,
        resume_step: int = 0,
        targets: Mapping[str, float] | None = None,
        save_s: float = 600.0,
        progress: Progress | None = None,
    ) -> None:
        self._run_dir = Path(run_dir)
        self._html, self._sample_every = html, sample_every
        self._step = resume_step
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._state = RunState(
            name,
            steps,
            targets=dict(targets or {}),
            started=started,
            title=title,
            data=list(data),
            versions=dict(versions or {}),
            facts=dict(facts or {}),
            models=dict(models or {}),
        )
        _prepare(self._run_dir, self._state, config_yaml, resume_step)
        record = read_record(self._run_dir)
        self.evaluations = record.evaluations
        """The evaluations that compare the steps of the run, also those before it was resumed."""
        every = [*record.evaluations, *(one for own in record.other_sets.values() for one in own)]
        self._before = {one.name: one for one in reversed(every) if one.label == "before"}
        self._progress = make_progress(name, steps, resume_step) if progress is None else progress
        self._timeline = Timeline(self._run_dir, resume_step, self._progress.lines) if trace else None
        self._save_s, self._files = save_s, FileWriter(save_s)
        there = [TensorboardConfig()] if tensorboard and all(own.type != "tensorboard" for own in trackers) else []
        tracked = TrackedRun(self._run_dir, name, title, (trackers and yaml.safe_load(config_yaml)) or {})
        self._trackers = Trackers([*there, *trackers], tracked, resume_step, self._progress.lines, trackers_s)

    def __enter__(self) -> Self:
        return self

    def status(self, text: str) -> None:
        """Show what the run does from now on, at once and until the next call."""
        self._progress.status(text)
        if self._timeline is not None:
            self._timeline.doing(text)

    def phase(self, name: str) -> None:
        """Begin a part of the next step: shown on a terminal; in plain output only if it takes long. ValueError if
        its time (`time/NAME_s`) is not declared as a metric."""
        key = f"time/{name}_s"
        check_known([key])
        self._progress.phase(f"step {self._step + 1}: {METRICS[key].doing or name}", name)
        if self._timeline is not None:
            self._timeline.doing(None)

    def starting(self, doing: Mapping[str, str]) -> None:
        """Show what each role is doing while it starts (role → words); an empty mapping: no role starts any more."""
        self._progress.starting(doing)

    def expect(self, steps: int) -> None:
        """Set the number of steps of the run, if it was not known at the beginning."""
        self._state = replace(self._state, steps=steps)
        write_state(self._run_dir, self._state)
        self._progress.expect(steps)

    def note(self, text: str) -> None:
        """Print text that stays on the screen."""
        self._progress.lines(text)

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        table: Sequence[SampleRow] = (),
        ledger: Mapping[str, Any] | None = None,
        keep: Callable[[Path], None] | None = None,
    ) -> None:
        """Report a step: one line of `metrics.jsonl`, some samples, its line of the ledger; `keep` writes all samples
        to a file, while the run goes on. ValueError for a metric that is not declared."""
        numbers = {key: value for key, value in metrics.items() if key != "step"}
        check_known(list(numbers))
        with at_most(self._save_s, f"writing the metrics of step {step}"):
            append_line(self._run_dir / run_files.METRICS_FILE, {"step": step, **numbers})
            for row in table:
                append_line(self._run_dir / run_files.SAMPLES_FILE, {"step": step, **asdict(row)})
            if ledger is not None:
                append_line(self._run_dir / run_files.LEDGER_FILE, {"step": step, **ledger})
        self._trackers.log(step, numbers)
        if keep is not None:
            self._files.put(run_files.samples_of(self._run_dir, step), keep)  # has a deadline of its own
        self._step = step
        self._progress.step(step, numbers)
        if table and self._sample_every and step % self._sample_every == 0:
            row = table[step // self._sample_every % len(table)]
            self._progress.lines(step_sample(step, row, self._progress.width))

    def timeline(self, part: PartOfRun) -> None:
        """Add a part to the run's timeline, while the run goes on."""
        if (timeline := self._timeline) is not None:
            whole = timeline.whole(part)
            self._files.put(timeline.path, lambda _: timeline.write(whole))

    def alert(self, alert: Alert) -> None:
        """Report a rule that has fired: a warning that stays on the screen, and one line of `alerts.jsonl`."""
        with at_most(self._save_s, "writing an alert"):
            append_line(self._run_dir / run_files.ALERTS_FILE, asdict(alert))
        self._trackers.alert(alert.step, alert.rule, str(alert))
        self._progress.warn(str(alert))

    def alerts(self) -> list[dict[str, Any]]:
        """The lines of `alerts.jsonl`, also of those before the run was resumed."""
        return run_files.read_lines(self._run_dir / run_files.ALERTS_FILE)

    def went_back(self, back: WentBack) -> None:
        """Report that the run goes on from an earlier step because of an alert: one line of `alerts.jsonl`."""
        with at_most(self._save_s, "writing where it goes back to"):
            append_line(self._run_dir / run_files.ALERTS_FILE, asdict(back))

    def metrics(self) -> Iterator[tuple[int, Mapping[str, float]]]:
        """Step and metrics of all reported steps, also of those before the run was resumed."""
        return ((int(line["step"]), line) for line in read_record(self._run_dir).metrics)

    def sync(self) -> None:
        """Wait until what has been reported is on the disk; a file of samples may have failed (`check`)."""
        self._files.wait()
        with at_most(self._save_s, "waiting for what it has written to be on the disk"):
            for name in run_files.LINES:
                if (path := self._run_dir / name).exists():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            sync_folder(self._run_dir)

    def check(self) -> None:
        """FileNotWritten if samples could not be written; raised once."""
        self._files.check()

    def complete(self) -> None:
        """Wait until everything that has been reported is on the disk. FileNotWritten as in `check`."""
        self.sync()
        self.check()

    def evaluation(self, result: EvaluationResult) -> None:
        """Report an evaluation: one line of `evaluation.jsonl`, and on the screen its change since the one before
        training."""
        with at_most(self._save_s, "writing an evaluation"):
            append_line(self._run_dir / run_files.EVALUATION_FILE, result.to_json())
        self.evaluations += [result] if result.decides else []
        self._trackers.log(result.step, evaluation_metrics(result))
        before = self._before.get(result.name)
        if result.label == "before":
            self._before[result.name], before = result, None
        self._progress.lines(evaluation_lines(result, before))
        if before is not None and result.label == "after" and result.decides:
            self._progress.lines(sample_lines(before, result))

    def reliability(self, curve: Sequence[ReliabilityBin]) -> None:
        """Report how sure a reward model is, and how often it is right; the newest curve is drawn."""
        self._state = replace(self._state, reliability=list(curve))
        write_state(self._run_dir, self._state)

    def leaves(self, best: int | None, ended: str) -> None:
        """Report the end of training: the step whose models are left (None: the last one), and why the run ends before
        its last step (empty: it does not)."""
        self._state = replace(self._state, best=best, ended=ended)
        if ended or (best is not None and best != self._step):
            self.note(ended or f"the gold score was highest at step {best}: the run leaves the models of that step")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish(error)
        except Exception as failure:
            if error is None:
                raise
            # Raise the run's own error; this one is only printed.
            self._progress.lines(f"the report could not be written: {type(failure).__name__}: {failure}")
        finally:
            files = [self._run_dir / name for name in (run_files.CONFIG_FILE, run_files.HTML_FILE)]
            failed = _ended(self._state, self._step, error).status == "failed"
            self._trackers.close(files, done=not failed, left_s=ORDERS.left_s)
            self._progress.close()

    def _finish(self, error: BaseException | None) -> None:
        with closing(self._files):
            with at_most(self._save_s, "writing the report"):
                write_state(self._run_dir, _ended(self._state, self._step, error))
                if self._html:
                    self._progress.lines(f"report: {render_report(self._run_dir)}")
            if self._timeline is not None:
                self._files.wait()  # has a deadline of its own, which ends in an error and not in the process's end
                self._timeline.close()


def _prepare(run_dir: Path, state: RunState, config_yaml: str, resume_step: int) -> None:
    """Prepare the run's folder for the step after `resume_step`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in run_files.LINES:
        if resume_step:
            drop_after(run_dir / name, resume_step)
        else:
            (run_dir / name).unlink(missing_ok=True)
    run_files.drop_cut_evaluation(run_dir / run_files.EVALUATION_FILE, resume_step)
    for path in run_files.kept_samples(run_dir, after=resume_step).values():
        path.unlink()
    (run_dir / run_files.CONFIG_FILE).write_text(config_yaml, encoding="utf-8")
    write_state(run_dir, state)


def _ended(state: RunState, step: int, error: BaseException | None) -> RunState:
    if error is None:
        return replace(state, status="done" if step >= state.steps or state.ended else "stopped")
    if isinstance(error, KeyboardInterrupt):
        why = "ended by SIGTERM" if isinstance(error, Terminated) else "interrupted by the user"
        return replace(state, status="stopped", error=why)
    if isinstance(error, StopTraining | RollBack):
        return replace(state, status="stopped", error=str(error))
    return replace(state, status="failed", error=f"{type(error).__name__}: {error}")
