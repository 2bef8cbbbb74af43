"""The commands that start models: `train`, `submit`, `reward`, `evaluate`.

A file and overrides flow in; the configuration is checked, the data is read, the driver is called. The engines are
imported inside the commands, after the configuration has loaded, so that a mistake in it is told at once.
"""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import (
    ConfigFile,
    Debug,
    Force,
    FromCluster,
    Overrides,
    ResumeFlag,
    ResumeFrom,
    which_checkpoint,
)
from orchestrator.commands.plan_command import check_plan, on_cluster
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: ResumeFlag = False,
    resume_from: ResumeFrom = None,
    cluster: FromCluster = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Train the policy with PPO.

    Example: tetrarch train configs/smoke.yaml steps=20 actor.optimizer.learning_rate=1e-6
    """
    with reported(debug) as report:
        run = load_config(config, overrides or ())
        run = report.loaded(on_cluster(run) if cluster else run)
        from orchestrator.checks.preparation import prepare_train

        if run.device == "cuda":
            check_plan(run, force)
        source = which_checkpoint(resume, resume_from)
        training, heldout = prepare_train(run, source)
        report.read(training, heldout)
        from orchestrator.stages.ppo import train as train_policy

        train_policy(run, source, training, heldout)


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The cluster's dashboard, http://HEAD:8265 [default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, here].",
        ),
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="Uploaded, without what .gitignore names: the code.")] = Path(),
    resume: ResumeFlag = False,
    resume_from: ResumeFrom = None,
    cluster: FromCluster = None,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Train on a Ray cluster, as a job: check that it fits there, upload, follow the log. The job's own exit code.

    Example: tetrarch submit configs/smoke.yaml run_dir=/shared/runs/smoke --address http://head:8265
    """
    with reported(debug):
        which_checkpoint(resume, resume_from)
        from orchestrator.commands.submit import Submission, check_room, check_travels, in_working_dir, run_job

        file = in_working_dir(config, working_dir)
        with chdir(working_dir):  # relative paths mean here what they will mean in the job
            run = load_config(file, overrides or ())
            check_travels(run, overrides or ())
            from cluster.runtime.jobs import RayJobs, dashboard_address

            jobs = RayJobs(dashboard_address(address))
            run = on_cluster(run, jobs) if cluster else run
            if run.device == "cuda":
                check_plan(run, force)
            check_room(run, jobs)
            flags = [flag for flag, said in (("--resume", resume), ("--force", force)) if said]
            flags += [f"--resume-from={resume_from}"] if resume_from else []
            flags += [f"--cluster={cluster}"] if cluster else []
            code = run_job(jobs, run, Submission(file, overrides or (), flags, Path.cwd()))
    raise typer.Exit(code)


def reward(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: ResumeFlag = False,
    resume_from: ResumeFrom = None,
    debug: Debug = False,
) -> None:
    """Train a reward model from preference pairs (the section reward_training).

    Example: tetrarch reward configs/smoke.yaml reward_training.epochs=2
    """
    with reported(debug) as report:
        run = report.loaded(load_root(RewardTrainingRun, config, overrides or ()))
        from orchestrator.checks.preparation import prepare_reward

        checkpoint = which_checkpoint(resume, resume_from)
        source = prepare_reward(run, checkpoint)
        report.read(source)
        from orchestrator.stages.reward_training import train_reward

        train_reward(run, checkpoint, source)


def evaluate(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Measure the policy on the held-out prompts: score, KL to the reference, response length.

    Example: tetrarch evaluate configs/smoke.yaml evaluation.prompts=32
    """
    with reported(debug) as report:
        run = report.loaded(load_root(EvaluationRun, config, overrides or ()))
        from orchestrator.checks.preparation import prepare_evaluate

        questions = prepare_evaluate(run)
        report.read(questions)
        from orchestrator.stages.evaluation import evaluate_run

        evaluate_run(run, questions)
