"""A run of any stage: its steps, and between them checkpoints, evaluations and reports; a rescue if something fails.

A configuration and a `Stage` flow in; checkpoints, metrics and reports flow out into `run_dir`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.ranks.calls import become_idle, wait_all
from cluster.ranks.watch import STARTED, Rank
from cluster.ranks.worker import version_reader
from cluster.role_table import row_of
from cluster.runtime.orders import ORDERS, Orders
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import dump_config
from orchestrator.errors import FileNotWritten, NotFinite, RollBack, StopTraining
from orchestrator.groups.recovery import Recovery
from orchestrator.ppo.gold_stop import best_steps
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.hub_commits import hub_commits
from orchestrator.run.model_contents import ContentsMeanwhile
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume, checkpoint_to_resume, take_up
from orchestrator.run.run_lock import held
from orchestrator.stages.failed_batch import failed_file, keep_failed
from orchestrator.stages.left_models import leave_last_models, leave_models
from orchestrator.stages.profiling import perhaps_profiled
from orchestrator.stages.run_facts import run_facts
from orchestrator.stages.stage import Stage, StepReport, Trainable
from orchestrator.stages.state_writer import StateWriter
from orchestrator.stages.step_told import all_metrics, step_part, tell_rest, tell_step, usage_told

REPORTED = ("tensorboard", "html", "sample_every", "trace", "trackers", "trackers_s")
"""Keys of the section `report` that are arguments of `Reporter`."""
UPDATES = ("update", "retrain")
"""Phases in which trained groups change."""
StartStage = Callable[[Reporter], AbstractContextManager[Stage]]
RESCUE_S = 30.0
"""Seconds in which a trained group that has failed itself must finish its calls; others have as long as for scoring."""


def carry_out(
    config: BaseConfig, resume: Resume, start: StartStage, again: Recovery | None = None, why: str = "", **report: Any
) -> None:
    """Run a stage in `config.run_dir`, from its first step or from a checkpoint to its end.

    Args:
        start: starts the roles; the stage lives as long as the context.
        again: counts how often the run has been started; `why`: why it is started again, for the user.
        report: more arguments of `Reporter`.
    """
    run_dir = Path(config.run_dir)
    with held(run_dir, config.deadlines.save_s) as lock:
        checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every)
        checkpoint = checkpoint_to_resume(config, resume)
        ORDERS.listen()
        ORDERS.grace_s = config.deadlines.grace_s
        told = take_up(run_dir, checkpoint, config, resume) if resume is not None else []
        settings, models = dump_config(config), ContentsMeanwhile(config)
        page = {key: getattr(config.report, key) for key in REPORTED} | {"save_s": config.deadlines.save_s}
        page |= {"versions": version_reader()(), "resume_step": checkpoint.step if checkpoint else 0}
        page |= {"facts": run_facts(config), "models": hub_commits(config)}
        with Reporter(run_dir, name=run_dir.name, config_yaml=settings, **{**page, **report}) as reporter:
            for line in filter(None, [why, *told]):
                reporter.note(line)
            with start(reporter) as stage:
                more: dict[str, Any] = {"orders": ORDERS, "check_lock": lock.check, "again": again or Recovery()}
                run = Run(config, stage, checkpoints, reporter, settings, models=models, **more)
                if checkpoint is not None:
                    run.restore(checkpoint)
                run.all_steps()


@dataclass(slots=True)
class Run:
    """A training run in progress: the steps of a stage, and between them evaluations, checkpoints and reports."""

    config: BaseConfig
    stage: Stage
    checkpoints: Checkpoints
    report: Reporter
    settings: str = ""
    orders: Orders = ORDERS
    check_lock: Callable[[], None] = lambda: None
    """Raises TetrarchError where another run writes to `run_dir`."""
    models: ContentsMeanwhile | None = None
    again: Recovery = field(default_factory=Recovery)
    """Counts how often the run has been started again."""
    finished: dict[str, Any] | None = None
    """The driver's state that belongs to the trained groups' state; None while they are updated."""
    tried: bool = False
    """Whether it has been tried to save that, since the run ends early."""
    writer: StateWriter = field(init=False)

    def __post_init__(self) -> None:
        where = self.config, self.checkpoints, self.report
        kept, safe = self.checkpoints.steps, self.check_lock
        trained, stay = lambda: self.stage.trained, lambda: [*self._best(), *self.stage.fallback(kept())]
        self.writer = StateWriter(*where, trained, stay, self.settings, self.orders, safe, self.models)

    def all_steps(self) -> None:
        """Run from the current step to the last one, then save the models. What ends it early saves its state first."""
        try:
            self._all_steps()
        except (KeyboardInterrupt, ClusterError) as error:
            self._rescue(error)
            raise

    def _all_steps(self) -> None:
        stage = self.stage
        if stage.step == 0:
            self._evaluate("before")
        elif not stage.evaluated:
            self._evaluate(f"step {stage.step}")
        self._keep_best()
        while stage.step < stage.steps and not stage.why_end:
            self.check_lock()
            told = self._one_step()
            with STARTED.only(stage.trained_ranks) if told.failed else nullcontext():  # others may have died
                self._heed(told)
            last = stage.step == stage.steps
            if last or self.writer.due(stage.step) or stage.step in self._best():
                self.save()
            self.orders.release()
            if self.config.checkpoint.leaves_models(stage.step):
                self.report.status(f"saving the models of step {stage.step}")
                leave_models(stage, self.config, self.settings, self.report.note)
            if not last and stage.evaluate_every and stage.step % stage.evaluate_every == 0:
                self._evaluate(f"step {stage.step}")
        if not stage.why_end:
            self._evaluate("after")
        elif not self._saved:
            self.save()
        self.writer.complete()
        self.report.leaves(stage.best, stage.why_end)
        self.report.status("saving the models")
        leave_last_models(stage, self.config, self.settings, self.report.note)
        self.report.complete()
        stage.check_ledger()
        tell_rest(self.report, stage.step, stage.cluster.usage)

    def _one_step(self) -> StepReport:
        clock, step = Clock(self._begin), self.stage.step + 1
        with self._rescued(f"step {step}"), perhaps_profiled(self.config, step, self.report.note):
            told = self.stage.one_step(clock)
        self.finished, usage = self.stage.state_dict(), usage_told(self.stage.cluster.usage, self.report.note)
        metrics, part = all_metrics(told, clock, usage, self.again), step_part(step, clock, usage)
        tell_step(self.config, self.report, told, part, metrics)
        return told

    def _begin(self, phase: str) -> None:
        """Begin a part of the step. While it is updated, only the whole step can be saved, and requests to end wait."""
        self.writer.look()
        if phase in UPDATES:
            self.orders.hold()
            self.finished = None
        elif phase == "evaluate":  # of what the update has left: the step can be saved from here on
            self.finished = self.stage.state_dict()
            self.orders.release()
        self.report.phase(phase)

    def _heed(self, told: StepReport) -> None:
        try:
            self.report.check()
            self.stage.after_step(told)
        except (StopTraining, FileNotWritten, RollBack) as error:
            if not isinstance(error, RollBack):
                self.save()
            self.writer.complete()
            raise
        if told.failed is not None:
            with self._rescued(f"the end of step {self.stage.step}"):
                raise told.failed

    def _evaluate(self, label: str) -> None:
        with self._rescued(f"evaluation {label}"):
            self.stage.evaluate(label)
        self._keep_best()

    def _keep_best(self) -> None:
        """Keep the checkpoint of the current step if it is one of the best, and then the models if they are the best so
        far: a run that is killed goes on at this step or later, where the kept models are of its past."""
        stage = self.stage
        if not self._saved and (stage.is_best or stage.step in self._best()):
            self.save()
        if stage.is_best:
            self.writer.complete()
            self.report.status(f"keeping the models of step {stage.step}, the best so far")
            stage.keep_models()

    def _best(self) -> list[int]:
        """The steps for `checkpoint.keep_best`: the best of those that have a checkpoint, and of the current one."""
        if not (count := self.config.checkpoint.keep_best):
            return []
        there = {*self.checkpoints.steps(), self.stage.step}
        return best_steps({step: score for step, score in self.stage.scores.items() if step in there and step}, count)

    @property
    def _saved(self) -> bool:
        """Whether there is a checkpoint of the current step; before the first step none is needed."""
        return self.stage.step == self._saved_step

    @property
    def _saved_step(self) -> int:
        """The step of the newest checkpoint, also of one that is under way; 0 if there is none."""
        if self.writer.under_way is not None:
            return int(self.writer.under_way.state["step"])
        return max(self.checkpoints.steps(), default=0)

    def save(self) -> None:
        """Write a checkpoint, or begin to write it."""
        self.report.status(f"saving checkpoint {self.stage.step}")
        self.stage.before_save()
        (self.writer.begin if self.config.checkpoint.asynchronous else self.writer.write)(self.stage.state_dict())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: restore driver and trained groups, and update what depends on them."""
        self.report.status(f"resuming from {checkpoint.path}")
        self.stage.load_state(checkpoint)
        trained = self.stage.trained.items()
        calls = [group.call(Trainable.load_state, str(checkpoint.path / role)) for role, group in trained]
        wait_all(calls, self.config.deadlines.start_s)
        self.stage.loaded()

    @contextmanager
    def _rescued(self, doing: str) -> Iterator[None]:
        """Context in which an error ends the run; if possible its batch and the last finished step are saved first."""
        self.finished = self.stage.state_dict()
        try:
            yield
        except NotFinite as error:
            self._keep_batch()
            if error.role not in self.stage.trained and row_of(error.role).frozen:
                self._rescue(error)  # the numbers of a trained role, and of engines with its weights, are not worth it
            raise NotFinite(error.role, f"in {doing} {error}") from error
        except Exception as error:  # of whatever kind: out of memory, too many open files, no room in Ray's store
            explained = error
            with self._second(f"{doing} has failed"):
                self.report.note(f"{doing} has failed")
            self._keep_batch()
            self._rescue(error)
            with self._second("why cannot be said in detail"):
                explained = self.stage.explain(error)
            if explained is error:
                raise
            raise explained from error

    def _rescue(self, error: BaseException) -> None:
        """Before the run ends early, save the last finished step once, if the trained groups still have it and can."""
        if self.orders.left_s and not self.tried:
            self._save_finished(error)
            self.tried = True

    def _save_finished(self, error: BaseException) -> None:
        trained = self.stage.trained_ranks
        with STARTED.only(trained):  # others may have died
            if self.writer.under_way is not None:
                with self._second(f"checkpoint {self._saved_step} could not be completed"):
                    self._become_idle(trained, error)
                    self.writer.complete()
            if (state := self.finished) is None:
                return
            with self._second(f"step {state['step']} could not be saved"):
                if state["step"] == self._saved_step:
                    return
                self.report.status(f"saving checkpoint {state['step']} before the run ends")
                self.stage.before_rescue(error)
                self._become_idle(trained, error)
                self.report.note(f"saved {self.writer.write(state)}; go on from there with --resume")

    def _become_idle(self, trained: Sequence[Rank], error: BaseException) -> None:
        guilty = isinstance(error, ClusterError) and any(who.role in self.stage.trained for who in error.blamed)
        within_s = RESCUE_S if guilty else self.config.deadlines.score_s
        if not become_idle(trained, min(within_s, self.orders.left_s)):
            raise ClusterError(f"a rank of {' or '.join(self.stage.trained)} hangs")

    def _keep_batch(self) -> None:
        """Save the batch of the failed step, so that the reason can be investigated."""
        if (batch := self.stage.batch) is not None:
            file = failed_file(self.config.run_dir, self.stage.step + 1)
            with self._second(f"the batch of the step that failed could not be written to {file}"):
                self.report.note(keep_failed(batch, file, self.config.deadlines.save_s))

    @contextmanager
    def _second(self, what: str) -> Iterator[None]:
        """Context for what is done when the run has failed: its own errors are only told, since the first error is the
        one to raise."""
        try:
            yield
        except Exception as failed:
            with suppress(Exception):  # the terminal may be what has failed
                self.report.note(f"{what}: {str(failed) or type(failed).__name__}")
