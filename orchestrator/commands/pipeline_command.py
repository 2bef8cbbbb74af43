"""The command `pipeline`: stages that start from one another's results, and a report that compares them."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import ConfigFile, Debug, Overrides
from orchestrator.config.loading import load_root
from orchestrator.config.pipeline import PipelineRun
from orchestrator.config.secrets import check_overrides


def pipeline(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Run stages one after another, such as SFT, a reward model, DPO, PPO and their evaluations (the section pipeline).

    Done stages are skipped, interrupted ones go on. Example: tetrarch pipeline configs/pipeline-smoke.yaml
    """
    with reported(debug) as report:
        check_overrides(overrides or ())
        run = load_root(PipelineRun, config, overrides or ())
        report.config = run
        from orchestrator.checks.pipeline_inputs import check_pipeline
        from orchestrator.run.pipeline_stages import resolved_stages
        from orchestrator.run.pipeline_state import PipelineState
        from orchestrator.run.run_lock import held
        from orchestrator.stages.pipeline import run_stages
        from orchestrator.stages.pipeline_report import report_of

        stages = resolved_stages(run.pipeline, config, overrides or ())
        folder = Path(run.pipeline.output)
        with held(folder):
            state = PipelineState.read(folder)
            _say(f"checking {len(stages)} stages, and what they read")
            check_pipeline(stages, state)
            try:
                run_stages(stages, state, folder, _say)
            except KeyboardInterrupt as order:
                _say(str(order))
                raise
            _say(f"report: {report_of(run.pipeline, stages, state)}")


def _say(text: str) -> None:
    typer.secho(text, bold=True, err=True)
