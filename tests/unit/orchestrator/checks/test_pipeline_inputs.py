"""What is told about all stages before the first starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrator.checks.pipeline_inputs import _checks, check_pipeline
from orchestrator.commands.training_table import TRAININGS
from orchestrator.config.pipeline import StageConfig
from orchestrator.errors import ConfigError
from orchestrator.run.pipeline_stages import STAGE_ROOTS
from orchestrator.run.pipeline_state import PipelineState, StageRecord
from tests.unit.orchestrator.pipelines import SmallPipeline, make


class Checks(dict[str, Any]):
    """In place of the commands' own checks: notes which configurations it is given."""

    def __init__(self) -> None:
        super().__init__({command: self._noting(command) for command in ("sft", "dpo", "evaluate")})
        self.seen: list[tuple[str, Any]] = []

    def _noting(self, command: str) -> Any:
        return lambda config: self.seen.append((command, config))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPipeline:
    monkeypatch.chdir(tmp_path)
    return SmallPipeline(tmp_path)


def done(pipeline: SmallPipeline, *names: str) -> PipelineState:
    """The state after these stages."""
    state = PipelineState()
    for name in names:
        stage = pipeline.stage(name)
        made = [str(path) for path in (*stage.folders, *stage.made)]
        state.stages[name] = StageRecord(state.depends(stage), made, done=True)
        make(stage)
        state.stages[name].output = state.output_of(stage)
    return state


def test_what_can_be_checked_is_and_the_rest_is_taken_as_made(pipeline: SmallPipeline) -> None:
    checks = Checks()
    found = check_pipeline(pipeline.stages(), PipelineState(), checks)
    assert list(found) == ["sft", "dpo", "measured"] and [command for command, _ in checks.seen] == ["sft"]
    assert found["dpo"] == ["stage sft runs before it"]


def test_a_stage_whose_inputs_were_made_is_checked_whole(pipeline: SmallPipeline) -> None:
    checks = Checks()
    found = check_pipeline(pipeline.stages(), done(pipeline, "sft"), checks)
    assert list(found) == ["dpo", "measured"] and [command for command, _ in checks.seen] == ["dpo"]


def test_a_done_pipeline_is_not_checked_again(pipeline: SmallPipeline) -> None:
    checks = Checks()
    assert check_pipeline(pipeline.stages(), done(pipeline, "sft", "dpo", "measured"), checks) == {}
    assert checks.seen == []


def test_the_problems_of_all_stages_are_told_at_once(pipeline: SmallPipeline) -> None:
    (pipeline.folder / "pairs.jsonl").unlink()
    pipeline.override("measured", **{"reward.path": "nowhere.py"})
    (pipeline.folder / "sft/model").mkdir(parents=True)
    (pipeline.folder / "sft/model/mine.txt").write_text("precious")
    with pytest.raises(ConfigError) as caught:
        check_pipeline(pipeline.stages(), PipelineState(), Checks())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("stage sft: sft/model is there, and this pipeline has not made it; remove it")
    assert lines[1] == "stage dpo: dpo.data.path=pairs.jsonl does not exist; correct the path"
    assert lines[2] == "stage measured: reward.path=nowhere.py does not exist; correct the path"
    assert len(lines) == 3


def test_a_training_that_runs_again_is_checked_with_a_folder_that_is_free(pipeline: SmallPipeline) -> None:
    state, checks = done(pipeline, "sft"), Checks()
    pipeline.data["sft"]["epochs"] = 2
    check_pipeline(pipeline.stages(), state, checks)
    (command, config), *_ = checks.seen
    assert command == "sft" and config.sft.epochs == 2 and config.sft.output == "sft/model-new"


def test_every_command_of_a_stage_has_a_root_and_the_check_with_which_it_begins() -> None:
    commands = set(get_args(StageConfig.model_fields["command"].annotation))
    assert commands == _checks().keys() and commands <= STAGE_ROOTS.keys()
    assert commands >= TRAININGS.keys(), "what trains can be a stage"
