"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.commands.job_table import JOBS
from orchestrator.commands.training_table import TRAININGS
from orchestrator.errors import ConfigError
from roles.config.section import usable_path


def user_path(text: str | Path) -> Path:
    """A path of the command line; `~` is the user's home also where a shell does not say so (`--json=~/plan.json`)."""
    try:
        return Path(usable_path(os.fspath(text)))
    except ValueError as error:
        raise typer.BadParameter(f"the path {error}; use another one") from None


def any_of(*names: str) -> Callable[[str], list[str]]:
    """What a shell offers of `names` for the beginning of a word."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", parser=user_path, help="A YAML file, such as configs/smoke.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Change single keys; values are YAML.", show_default=False),
]


RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", parser=user_path, help="The run_dir of a run, such as runs/smoke.")
]


class ClusterSource(StrEnum):
    """The source of a placement's pools, if it is not the file."""

    AUTO = "auto"


FromCluster = Annotated[
    ClusterSource | None,
    typer.Option("--cluster", help="auto: the pools of the placement are what the running Ray cluster has."),
]
CommandName = Annotated[
    str | None,
    typer.Option(
        "--command",
        metavar="NAME",
        autocompletion=any_of(*TRAININGS),
        help="Which command that trains is meant [default: train, or the only one the file is for].",
        show_default=False,
    ),
]
JobName = Annotated[
    str | None,
    typer.Option(
        "--command",
        metavar="NAME",
        autocompletion=any_of(*TRAININGS, *JOBS),
        help="The command of the job: train, reward, sft, dpo, evaluate, best-of-n or label [default: train, or the "
        "only one the file is for].",
        show_default=False,
    ),
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
Dashboard = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The cluster's dashboard, http://HEAD:8265 [default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, here].",
    ),
]
WorkingDir = Annotated[
    Path, typer.Option(metavar="PATH", parser=user_path, help="Uploaded, without what .gitignore names: the code.")
]
Force = Annotated[bool, typer.Option("--force", help="Start although the plan says that it cannot fit.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def which_checkpoint(resume: bool, step: int | None) -> Literal["newest"] | int | None:
    """The checkpoint that `--resume` and `--resume-from` ask for; None: a new run."""
    if resume and step is not None:
        raise ConfigError(f"--resume takes the newest checkpoint, --resume-from {step} that of a step; say one of them")
    return "newest" if resume else step
