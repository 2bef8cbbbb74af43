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
    compared = measured_alike([by_name[name] for name in pipeline.compare.values()])
    columns = [
        ComparedPolicy(heading, name, result, by_name[name].made_by)
        for (heading, name), result in zip(pipeline.compare.items(), compared, strict=True)
    ]
    times = [
        StageTime(stage.name, stage.command, str(stage.output), stage.needs, state.stages[stage.name].seconds)
        for stage in stages
    ]
    folder = Path(pipeline.output)
    comparison = Comparison(folder.name, columns, times, pipeline.price_per_hour, pipeline.samples)
    return write_comparison(folder, comparison)


def measured_alike(stages: Sequence[PipelineStage]) -> list[EvaluationResult]:
    """What each of the stages has measured on the set of held-out prompts that compares the first stage's steps; on its
    own such set where it has not measured that one."""
    every = [_measured_by(stage) for stage in stages]
    return [next((one for one in sets if one.name == every[0][0].name), sets[0]) for sets in every]


def _measured_by(stage: PipelineStage) -> list[EvaluationResult]:
    """What a stage with the command `evaluate` or `best-of-n` has measured on each set of held-out prompts; that which
    compares steps is the first."""
    found = json.loads(stage.made[-1].read_text(encoding="utf-8"))
    sets = [found["picked"]] if stage.command == "best-of-n" else [found, *found.get("other_sets", {}).values()]
    return [EvaluationResult.from_json(one) for one in sets]
