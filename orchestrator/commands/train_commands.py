"""The commands that start models: those of the table of trainings, `submit`, `evaluate`.

A file and overrides flow in; the configuration is checked, the data is read, the stage is called. The engines are
imported inside the commands, after the configuration has loaded, so that a mistake in it is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.role_table import ACTOR
from orchestrator.checks.job_inputs import check_job_inputs
from orchestrator.checks.planned_models import check_planned_models
from orchestrator.commands.exit_codes import reported
from orchestrator.commands.job_table import JOBS, job_roles, job_root
from orchestrator.commands.options import (
    ConfigFile,
    Dashboard,
    Debug,
    Force,
    FromCluster,
    JobName,
    Overrides,
    ResumeFlag,
    ResumeFrom,
    WorkingDir,
    user_path,
    which_checkpoint,
)
from orchestrator.commands.plan_command import check_plan, on_cluster
from orchestrator.commands.training_table import TRAININGS, training_of
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import load_root
from orchestrator.config.roots import ROOTS
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints, trained_step
from roles.text.template_date import keep_day_of

if TYPE_CHECKING:
    from orchestrator.stages.model_export import StoredModel


MeasuredStep = Annotated[
    int | None,
    typer.Option(
        "--step", metavar="N", min=1, help="The policy in the run's checkpoint of that step.", show_default=False
    ),
]
MeasuredCheckpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        parser=user_path,
        help="The policy in this checkpoint, such as runs/smoke/checkpoints/step-000005.",
        show_default=False,
    ),
]


def training_command(name: str) -> Callable[..., None]:
    """The command `tetrarch NAME` of a row of the table."""
    start = TRAININGS[name].start

    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        resume: ResumeFlag = False,
        resume_from: ResumeFrom = None,
        cluster: FromCluster = None,
        force: Force = False,
        debug: Debug = False,
    ) -> None:
        with reported(debug) as report:
            run = report.loaded(load_root(ROOTS[name], config, overrides or ()), overrides)
            run = on_cluster(run) if cluster else run
            check_plan(name, run, force)
            start(run, which_checkpoint(resume, resume_from), report)

    command.__doc__ = start.__doc__
    return command


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    command: JobName = None,
    address: Dashboard = None,
    working_dir: WorkingDir = Path(),
    resume: ResumeFlag = False,
    resume_from: ResumeFrom = None,
    cluster: FromCluster = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Run a command on a Ray cluster, as a job: check that it fits there, upload, follow the log. The job's own exit
    code.

    Example: tetrarch submit configs/smoke.yaml run_dir=/shared/runs/smoke --address http://head:8265
    """
    with reported(debug) as report:
        which_checkpoint(resume, resume_from)
        from orchestrator.commands.submit import Submission, check_room, check_travels, in_working_dir, run_job

        flags = [flag for flag, said in (("--resume", resume), ("--force", force)) if said]
        flags += [f"--resume-from={resume_from}"] if resume_from else []
        flags += [f"--cluster={cluster}"] if cluster else []
        file = in_working_dir(config, working_dir)
        with chdir(working_dir):  # relative paths mean here what they will mean in the job
            name = training_of(file, overrides or (), command, others=tuple(JOBS))
            if name in JOBS and flags:
                raise ConfigError(f"{flags[0]} is for commands that train, and tetrarch {name} does not; leave it out")
            run = load_root(job_root(name), file, overrides or ())
            report.unused(run, overrides)
            check_travels(run, overrides or ())
            from cluster.runtime.jobs import RayJobs, dashboard_address
            from cluster.runtime.upload import left_out_of

            check_job_inputs(run, left_out_of(Path.cwd()))
            check_planned_models(run)
            jobs = RayJobs(dashboard_address(address))
            run = on_cluster(run, jobs) if cluster else run
            if name in TRAININGS:
                check_plan(name, run, force)
            check_room(run, job_roles(name, run), jobs)
            code = run_job(jobs, run, Submission(name, file, overrides or (), flags, Path.cwd()))
    raise typer.Exit(code)


def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    step: MeasuredStep = None,
    checkpoint: MeasuredCheckpoint = None,
    debug: Debug = False,
) -> None:
    """Measure the policy on the held-out prompts: score, KL to the reference, response length.

    Example: tetrarch evaluate configs/smoke.yaml evaluation.prompts=32 --step 5
    """
    with reported(debug) as report:
        run = report.loaded(load_root(EvaluationRun, config, overrides or ()), overrides)
        from orchestrator.checks.preparation import prepare_evaluate

        stored = _stored_policy(run, step, checkpoint)
        keep_day_of(_state_of_run(run, stored))
        questions = prepare_evaluate(run)
        report.read(*questions.values())
        from orchestrator.stages.evaluation import evaluate_run

        evaluate_run(run, questions, stored)


def _state_of_run(run: EvaluationRun, stored: StoredModel | None) -> Mapping[str, Any] | None:
    """The state of the run whose policy is measured; None if it is that of no run, or of one without a checkpoint."""
    if stored is not None:
        return stored.checkpoint.state
    run_dir = Path(run.run_dir)
    newest = Checkpoints(run_dir / "checkpoints", run.checkpoint.keep).newest() if trained_step(run_dir) else None
    return newest.state if newest else None


def _stored_policy(run: EvaluationRun, step: int | None, folder: Path | None) -> StoredModel | None:
    """The policy of the checkpoint that `--step` or `--checkpoint` names; None without them."""
    if step is not None and folder is not None:
        raise ConfigError("--step names a checkpoint of run_dir, --checkpoint a folder; say one of them")
    if step is None and folder is None:
        return None
    from orchestrator.stages.chosen_checkpoint import checkpoint_at, chosen_checkpoint
    from orchestrator.stages.model_export import StoredModel

    return StoredModel.open(checkpoint_at(folder) if folder else chosen_checkpoint(Path(run.run_dir), step), ACTOR)
