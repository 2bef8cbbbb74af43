"""The command `plan`, and the drawings of a plan that other commands show.

A configuration flows in; drawings flow to a console; a PlacementError flows out if the run would not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cluster.errors import PlacementError
from orchestrator.checks.run_folders import check_file
from orchestrator.commands.exit_codes import RUN_FAILED, reported
from orchestrator.commands.options import CommandName, ConfigFile, Debug, FromCluster, Overrides, user_path
from orchestrator.commands.training_table import DEFAULT, TRAININGS, training_of
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.secrets import check_overrides
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import Efficiency
    from cluster.runtime.jobs import RayJobs
    from orchestrator.planning.planned_layout import PlannedLayout


C = TypeVar("C", bound=BaseConfig)


Drawing = Annotated[Path | None, typer.Option("--svg", metavar="FILE", parser=user_path, help="Draw into FILE, too.")]
Numbers = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", parser=user_path, help="Write the numbers to FILE.")
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", parser=user_path, help="Draw the step's seconds into FILE, for Perfetto."),
]

Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate", metavar="RUN", parser=user_path, help="Fit the times to a run; writes RUN/efficiency.yaml."
    ),
]
Factors = Annotated[
    Path | None, typer.Option("--efficiency", metavar="FILE", parser=user_path, help="Times from such a file.")
]


def show_plan(
    config: ConfigFile,
    overrides: Overrides = None,
    command: CommandName = None,
    svg: Drawing = None,
    as_json: Numbers = None,
    trace: Trace = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Search the fastest layouts of the same GPUs; the best one as YAML.")
    ] = False,
    calibrate: Calibrate = None,
    efficiency: Factors = None,
    cluster: FromCluster = None,
    debug: Debug = False,
) -> None:
    """Say which role of a training sits on which GPU, whether it fits, and what a step costs. Exit code 1 if it does
    not fit.

    Example: tetrarch plan configs/llama3-70b-32xa800.yaml --suggest
    """
    with reported(debug) as report:
        for option, file in (("--svg", svg), ("--json", as_json), ("--trace", trace)):
            if file is not None:
                check_file(file, option)
        check_overrides(overrides or ())
        name = training_of(config, overrides or (), command)
        run = load_root(ROOTS[name], config, overrides or ())
        report.unused(run, overrides)
        run = on_cluster(run) if cluster else run
        _check_options(name, suggest, calibrate)
        factors = _factors(run, calibrate, efficiency)
        from rich.console import Console

        console = Console(record=svg is not None)
        planned = draw_plan(name, run, console, factors)
        if isinstance(run, RunConfig) and suggest:
            show_suggestions(run, planned[-1], console, factors)
        if svg is not None:
            drawn = console.export_svg(title=f"tetrarch plan {config}")
            svg.write_text(without_web_fonts(drawn), encoding="utf-8")
        from orchestrator.planning.layout_drawing import to_json
        from orchestrator.planning.trace import write_trace

        if as_json is not None:
            as_json.write_text(json.dumps(to_json(name, planned), indent=1) + "\n", encoding="utf-8")
        if trace is not None:
            write_trace(trace, planned[-1].step.course, planned[-1].plan)
    if any(one.shortages for one in planned):
        raise typer.Exit(RUN_FAILED)


def without_web_fonts(svg: str) -> str:
    """A drawing that asks no server for a font, as rich's does; it is shown in one that is installed."""
    return re.sub(r"@font-face\s*\{[^}]*\}\s*", "", svg)


def _check_options(command: str, suggest: bool, calibrate: Path | None) -> None:
    """ConfigError for an option that only a plan of PPO has."""
    for option, given in (("--suggest", suggest), ("--calibrate", calibrate is not None)):
        if given and command != DEFAULT:
            raise ConfigError(
                f"{option} is for a plan of tetrarch {DEFAULT}, and this is one of tetrarch {command}; leave it out"
            )


def _factors(config: BaseConfig, calibrate: Path | None, efficiency: Path | None) -> Efficiency | None:
    """How much of the published rates is reached: as in a run, or as in a file; None if neither is given. ConfigError
    for those of a run without GPUs in a plan for some."""
    from orchestrator.planning.calibration import FITTED, calibrated
    from orchestrator.planning.efficiency import load_efficiency

    if calibrate is not None and efficiency is not None:
        raise ConfigError("--calibrate and --efficiency both say how fast things are; give one")
    found = calibrated(calibrate) if calibrate else load_efficiency(efficiency) if efficiency else None
    if found and found.cpu.gflops and config.device != "cpu":
        raise ConfigError(
            f"{calibrate or efficiency} tells how fast a machine without GPUs is, and this plan is for GPUs; calibrate "
            "on a run with device=cuda"
        )
    if calibrate is not None:
        typer.echo(f"fitted to the steps of {calibrate}; --efficiency {calibrate / FITTED} uses it again", err=True)
    return found


def on_cluster(run: C, jobs: RayJobs | None = None) -> C:
    """The run with the pools of the running cluster (`--cluster auto`); with `jobs`, of that cluster instead of
    RAY_ADDRESS's."""
    from orchestrator.commands.running_cluster import describe_pools, on_nodes, on_running_cluster

    run = on_running_cluster(run) if jobs is None else on_nodes(run, jobs.nodes())
    for line in describe_pools(run):
        typer.echo(line, err=True)
    return run


def show_suggestions(run: RunConfig, planned: PlannedLayout, console: Console, factors: Efficiency | None) -> None:
    """Print the best layouts, whether the file's is one of them, and the YAML of the first."""
    import yaml

    from orchestrator.planning.layout_drawing import draw_suggestions
    from orchestrator.planning.suggest import suggest

    with console.status("searching"):
        found = suggest(run, factors)
    console.print(draw_suggestions(found, planned))
    if found:
        if found[0].ties(planned):
            console.print("The file's own layout is as fast, as far as the prediction can tell: it may stay as it is.")
        console.print("The first of them, to write into the file:")
        print(yaml.safe_dump(found[0].changes(), sort_keys=False), end="")


def draw_plan(
    command: str, run: BaseConfig, console: Console, factors: Efficiency | None = None
) -> Sequence[PlannedLayout]:
    """Draw the layouts of a training, and the smallest change that makes them fit, if they do not."""
    from orchestrator.checks.engine_fit import check_planned_engine
    from orchestrator.checks.planned_models import check_planned_models
    from orchestrator.planning.layout_drawing import draw
    from orchestrator.planning.smallest_change import smallest_change

    layouts = TRAININGS[command].layouts
    check_planned_models(run)
    policy = run.policy if isinstance(run, RewardTrainingRun) else run
    if isinstance(policy, SamplingConfig):
        check_planned_engine(policy)
    planned = layouts(run, factors)
    short = any(one.shortages for one in planned)
    fix = smallest_change(run, lambda changed: layouts(changed, factors)) if short else None
    for one in planned:
        console.print(draw(one, fix))
    return planned


def check_plan(command: str, run: BaseConfig, force: bool) -> None:
    """On GPUs, draw the layouts of a training; PlacementError if one does not fit, unless `force`."""
    if run.device != "cuda":
        return
    from rich.console import Console

    from orchestrator.sizes.model_sources import UnknownModel

    try:
        planned = draw_plan(command, run, Console(stderr=True))
    except UnknownModel as unknown:
        typer.echo(f"no plan: {unknown}", err=True)
        return
    if any(one.shortages for one in planned) and not force:
        raise PlacementError("see the plan above; change the settings, or say --force")
