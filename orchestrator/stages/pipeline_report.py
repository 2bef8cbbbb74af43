"""The report of a pipeline from what its stages have left: resolved stages and the state flow in, a page flows out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.pipeline import PipelineConfig
from orchestrator.report.comparison import ComparedPolicy, Comparison, StageTime, write_comparison
from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.run.pipeline_stages import PipelineStage
from orchestrator.run.pipeline_state import PipelineState


def report_of(pipeline: PipelineConfig, stages: Sequence[PipelineStage], state: PipelineState) -> Path:
    """Compare what `pipeline.compare` names, and write the report to `pipeline.output`."""
    by_name = {stage.name: stage for stage in stages}
    columns = [
        ComparedPolicy(heading, name, measured_by(by_name[name]), by_name[name].made_by)
        for heading, name in pipeline.compare.items()
    ]
    times = [
        StageTime(stage.name, stage.command, str(stage.output), stage.needs, state.stages[stage.name].seconds)
        for stage in stages
    ]
    folder = Path(pipeline.output)
    comparison = Comparison(folder.name, columns, times, pipeline.price_per_hour, pipeline.samples)
    return write_comparison(folder, comparison)


def measured_by(stage: PipelineStage) -> EvaluationResult:
    """What a stage with the command `evaluate` or `best-of-n` has measured."""
    found = json.loads(stage.made[-1].read_text(encoding="utf-8"))
    return EvaluationResult.from_json(found["picked"] if stage.command == "best-of-n" else found)
