"""The command `tetrarch`, thin: arguments flow in, the drivers are called, an exit code flows out.

Exit codes: 0 done, 1 the run failed, 2 the configuration (or the placement it asks for) is wrong, 130 stopped by
Ctrl-C, 143 ended by SIGTERM. Errors go to stderr as one block without a traceback; the traceback of a failed run goes
to `<run_dir>/logs/driver.log`, and is shown with `--debug`. The engines are imported inside the commands, so that
`--help` and `config` answer at once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import chdir
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.commands.exit_codes import RUN_FAILED, reported
from orchestrator.commands.plan_output import check_plan, draw_plan, on_cluster, show_suggestions
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import dump_config, load_all, load_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.roots import json_schema
from orchestrator.errors import ConfigError

app = typer.Typer(
    name="tetrarch",
    help="Train a language model with PPO: actor, critic, reward and reference on Ray, vLLM and DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/smoke.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Change single keys; values are YAML.", show_default=False),
]


class ClusterSource(StrEnum):
    """Where the pools of a placement come from, if not from the file."""

    AUTO = "auto"


FromCluster = Annotated[
    ClusterSource | None,
    typer.Option("--cluster", help="auto: the pools of the placement are what the running Ray cluster has."),
]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in run_dir.")]
ResumeFrom = Annotated[
    int | None,
    typer.Option(
        "--resume-from",
        metavar="STEP",
        min=1,
        help="Go on from the checkpoint of that step; what came after it is set aside in run_dir.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Start although the plan says that it cannot fit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
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
        from orchestrator.checks.commands import check_train

        if run.device == "cuda":
            check_plan(run, force)
        source = _which_checkpoint(resume, resume_from)
        training, heldout = check_train(run, source)
        report.read(training, heldout)
        from orchestrator.stages.ppo import train as train_policy

        train_policy(run, source, training, heldout)


@app.command()
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
        _which_checkpoint(resume, resume_from)
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


@app.command()
def reward(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a reward model from preference pairs (the section reward_training).

    Example: tetrarch reward configs/smoke.yaml reward_training.epochs=2
    """
    with reported(debug) as report:
        run = report.loaded(load_root(RewardTrainingRun, config, overrides or ()))
        from orchestrator.checks.commands import check_reward

        source = check_reward(run)
        report.read(source)
        from orchestrator.stages.reward import train_reward

        train_reward(run, source)


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Measure the policy on the held-out prompts: score, KL to the reference, response length.

    Example: tetrarch evaluate configs/smoke.yaml evaluation.prompts=32
    """
    with reported(debug) as report:
        run = report.loaded(load_root(EvaluationRun, config, overrides or ()))
        from orchestrator.checks.commands import check_evaluate

        questions = check_evaluate(run)
        report.read(questions)
        from orchestrator.stages.evaluation import evaluate_run

        evaluate_run(run, questions)


@app.command("plan")
def show_plan(
    config: ConfigFile,
    overrides: Overrides = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw into FILE, too.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers to FILE.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Draw the step's seconds into FILE, for Perfetto.")
    ] = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Search the fastest layouts of the same GPUs; the best one as YAML.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="RUN", help="Fit the times to a run; writes RUN/efficiency.yaml."),
    ] = None,
    efficiency: Annotated[
        Path | None, typer.Option("--efficiency", metavar="FILE", help="Times from such a file.")
    ] = None,
    cluster: FromCluster = None,
    debug: Debug = False,
) -> None:
    """Say which role sits on which GPU, whether it fits, and what a step costs. Exit code 1 if it does not fit.

    Example: tetrarch plan configs/llama3-70b-32xa800.yaml --suggest
    """
    with reported(debug):
        run = load_config(config, overrides or ())
        run = on_cluster(run) if cluster else run
        from rich.console import Console

        from orchestrator.planning.calibration import calibrated
        from orchestrator.planning.efficiency import load_efficiency
        from orchestrator.planning.layout_drawing import to_json
        from orchestrator.planning.trace import write_trace

        if calibrate is not None and efficiency is not None:
            raise ConfigError("--calibrate and --efficiency both say how fast things are; give one")
        factors = calibrated(calibrate) if calibrate else load_efficiency(efficiency) if efficiency else None
        console = Console(record=svg is not None)
        planned = draw_plan(run, console, factors)
        if suggest:
            show_suggestions(run, planned, console, factors)
        if svg is not None:
            console.save_svg(str(svg), title=f"tetrarch plan {config}")
        if as_json is not None:
            as_json.write_text(json.dumps(to_json(planned), indent=1) + "\n", encoding="utf-8")
        if trace is not None:
            write_trace(trace, planned.step.course, planned.plan)
    if planned.shortages:
        raise typer.Exit(RUN_FAILED)


@app.command("import-openrlhf")
def import_openrlhf(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="YAML of OpenRLHF's keys, or a script with its command.")
    ],
    debug: Debug = False,
) -> None:
    """Turn OpenRLHF's options into a configuration (on stdout), and name what could not be carried over (on stderr).

    Example: tetrarch import-openrlhf train_ppo_llama_ray_70b.sh > mine.yaml
    """
    with reported(debug):
        from orchestrator.config.openrlhf import import_file

        imported = import_file(file)
        print(imported.text, end="")
        for key in imported.left_out:
            typer.echo(f"not carried over: {key}", err=True)
        for key in imported.to_fill:
            typer.echo(f"still to be said: {key}", err=True)


@app.command()
def doctor(debug: Debug = False) -> None:
    """Look at versions, GPUs, memory, disk and Ray: green, or what to do. Exit code 1 if something is to be done.

    Example: RAY_ADDRESS=head:6379 tetrarch doctor
    """
    with reported(debug):
        from orchestrator.commands.doctor import examine

        findings = examine(Path())
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = (
            typer.style("to do", fg=typer.colors.RED) if finding.mend else typer.style("   ok", fg=typer.colors.GREEN)
        )
        typer.echo(f"{mark}  {finding.what:{width}}  {finding.found}{'; ' + finding.mend if finding.mend else ''}")
    if any(finding.mend for finding in findings):
        raise typer.Exit(RUN_FAILED)


@app.command("config")
def show_config(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file.")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema, for editors.")] = False,
    debug: Debug = False,
) -> None:
    """Print the resolved configuration as YAML, secrets redacted; or the JSON Schema of all configurations.

    Example: tetrarch config configs/smoke.yaml ppo.epochs=2
    """
    with reported(debug):
        if schema:
            text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
        elif config is None:
            raise ConfigError("no configuration given; name a file, such as configs/smoke.yaml, or say --schema")
        else:
            runs = load_all(config, overrides or ())
            text = f"# what tetrarch {', '.join(runs)} read\n" + dump_config(*runs.values()).rstrip("\n")
    print(text)


def _which_checkpoint(resume: bool, step: int | None) -> Literal["newest"] | int | None:
    if resume and step is not None:
        raise ConfigError(f"--resume takes the newest checkpoint, --resume-from {step} that of a step; say one of them")
    return "newest" if resume else step


def main() -> None:
    """The entry point of `tetrarch` and of `python -m orchestrator`."""
    code: object = 0
    # Imports make a million objects that stay; by default, looking for garbage among them takes a seventh of the time.
    gc.set_threshold(50_000)
    try:
        app()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything has been ended and written; Ray's threads may crash while the interpreter takes itself apart.
    os._exit(code if isinstance(code, int) else int(code is not None))
