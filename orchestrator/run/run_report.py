"""The report of runs that others have made: their folders flow in, a page flows out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.report.page import render_report
from orchestrator.report.run_files import METRICS_FILE, STATE_FILE, read_record
from orchestrator.report.runs_page import render_runs
from orchestrator.run.run_lock import state_now


def write_report(runs: Sequence[Path], output: Path | None) -> Path:
    """Write the page of one run, or a comparison of several; returns its path. ConfigError for a folder that holds no
    run, or a damaged file.

    Args:
        output: None: `report.html` in the run, or `comparison.html` in the first of several.
    """
    for run in runs:
        if not any((run / name).is_file() for name in (STATE_FILE, METRICS_FILE)):
            raise ConfigError(f"{run} holds neither {STATE_FILE} nor {METRICS_FILE}; name the run_dir of a run")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output={output}: the folder {output.parent} does not exist; make it")
    try:
        now = [state_now(run, read_record(run).state.status) for run in runs]
        return render_report(runs[0], output, now[0]) if len(runs) == 1 else render_runs(runs, output, now)
    except ValueError as error:
        raise ConfigError(str(error)) from None
