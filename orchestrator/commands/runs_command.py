"""`tetrarch runs`: folders flow in; a line for every run in them flows out."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path
from orchestrator.display_text import printable
from orchestrator.run.found_runs import FoundRun, found_runs


def runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", parser=user_path, help="[default: runs]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs below folders: kind, state, step, main metrics, from where --resume goes on. Newest last.

    Example: tetrarch runs runs
    """
    with reported(debug):
        found = sorted(found_runs(folders or [Path("runs")]), key=lambda run: run.started)
    if json:
        typer.echo(json_format.dumps([asdict(run) for run in found], indent=1))
    else:
        typer.echo("\n".join(_lines(found)) if found else "no run here yet; a run's folder holds a run.json")


def _lines(found: Sequence[FoundRun]) -> list[str]:
    rows = [("run", "kind", "state", "step", "resumes", "started", "")]
    rows += [
        (
            *(run.run, run.kind, run.state, f"{run.step}/{run.steps or '?'}"),
            *("-" if run.resumes is None else f"at {run.resumes}", _local(run.started), run.numbers),
        )
        for run in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return [printable(line.rstrip()) for line in lines]


def _local(started: str) -> str:
    """A time in this machine's zone, to the minute; what is no time stays as it is."""
    try:
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return started
