"""Which measurement of each stage the report of a pipeline puts beside the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.report.run_files import finite
from orchestrator.run.pipeline_state import PipelineState, StageRecord
from orchestrator.stages.pipeline_report import report_of
from tests.unit.orchestrator.pipelines import SmallPipeline
from tests.unit.orchestrator.report.test_evaluation_results import evaluation


def measure(pipeline: SmallPipeline, stage: str, **sets: float) -> None:
    """As `tetrarch evaluate` writes it; the first set compares steps. Name of a set → its mean score."""
    results = [replace(evaluation("x", [mean - 1, mean + 1]), name=name) for name, mean in sets.items()]
    told = {**results[0].to_json(), "other_sets": {one.name: one.to_json() for one in results[1:]}}
    file = pipeline.stage(stage).output
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(finite(told)))


@pytest.mark.parametrize(
    "sets, seen, differs",
    [({"code": 9.0, "math": 3.0}, "math", 2.0), ({"math": 3.0}, "math", 2.0), ({"code": 9.0}, "code", None)],
)
def test_the_same_set_of_every_stage_is_compared(
    sets: dict[str, float], seen: str, differs: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = SmallPipeline(tmp_path)
    (tmp_path / "out").mkdir()
    settings = pipeline.data["pipeline"]
    settings["stages"]["again"] = {"command": "evaluate", "overrides": {"run_dir": "again"}}
    settings["compare"] = {"first": "measured", "second": "again"}
    measure(pipeline, "measured", math=1.0, code=5.0)
    measure(pipeline, "again", **sets)
    stages = pipeline.stages()
    state = PipelineState()
    state.stages = {stage.name: StageRecord(state.depends(stage), []) for stage in stages}
    report_of(pipeline.loaded, stages, state)
    second = json.loads((tmp_path / "out/report.json").read_text())["compared"]["second"]
    assert second["set"] == seen
    assert {name: one["mean"] for name, one in second["difference_from_first"].items()}.get("proxy_score") == differs
