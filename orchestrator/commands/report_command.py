"""`tetrarch report`: the folders of runs flow in; the page of one run, or a comparison of several, flows out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path
from orchestrator.errors import ConfigError

ReportedRuns = Annotated[
    list[Path], typer.Argument(metavar="RUN...", parser=user_path, help="The run_dir of each run, such as runs/smoke.")
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        parser=user_path,
        help="The page [default: report.html in RUN; of several runs comparison.html in the first]",
        show_default=False,
    ),
]


def report(runs: ReportedRuns, output: ReportFile = None, debug: Debug = False) -> None:
    """Write the report of a run, also of one that is under way or has broken off; of several runs a comparison.

    One page that loads nothing. Example: tetrarch report runs/smoke runs/smoke-again --output both.html
    """
    with reported(debug):
        from orchestrator.report.page import render_report
        from orchestrator.report.run_files import METRICS_FILE, STATE_FILE
        from orchestrator.report.runs_page import render_runs

        for run in runs:
            if not any((run / name).is_file() for name in (STATE_FILE, METRICS_FILE)):
                raise ConfigError(f"{run} holds neither {STATE_FILE} nor {METRICS_FILE}; name the run_dir of a run")
        if output is not None and not output.parent.is_dir():
            raise ConfigError(f"--output={output}: the folder {output.parent} does not exist; make it")
        try:
            path = render_report(runs[0], output) if len(runs) == 1 else render_runs(runs, output)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        typer.echo(str(path))
