"""`tetrarch report`: the folders of runs flow in; the page of one run, or a comparison of several, flows out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path

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
        from orchestrator.run.run_report import write_report

        typer.echo(str(write_report(runs, output)))
