"""`tetrarch trace`: a run's folder flows in; where the time of a step went flows out."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path
from orchestrator.errors import ConfigError
from orchestrator.stages.resume_proof import steps_in
from orchestrator.timeline.recorded_steps import recorded_steps
from orchestrator.timeline.trace_file import TRACE_FILE
from orchestrator.timeline.where_time_went import as_lines, as_numbers, chosen_step


def trace(
    run: Annotated[Path, typer.Argument(metavar="RUN", parser=user_path, help="Folder of the run.")],
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Which step. [default: one of median length]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show where the time of a step went: per role busy or waiting and for whom, the critical path, what would help.

    Example: tetrarch trace runs/tiny
    """
    with reported(debug):
        try:
            steps = recorded_steps(run)
            chosen = chosen_step(steps, step)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if json:
            typer.echo(json_format.dumps(as_numbers(steps, chosen), indent=1))
            return
        typer.echo("\n".join(as_lines(steps, chosen)))
        last, done = steps[-1].step, steps_in(run)
        if done and last != done:
            typer.echo(f"\nthe timeline goes up to step {last}, and the run has done {done}")
        typer.echo(f"\nall of it: open {run / TRACE_FILE} in https://ui.perfetto.dev, which keeps it in the browser")
