"""Which stages run again: what their results depend on, by content, and what was left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.run.pipeline_state import PipelineState, StageRecord
from tests.unit.orchestrator.pipelines import SmallPipeline, make, why


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPipeline:
    monkeypatch.chdir(tmp_path)
    return SmallPipeline(tmp_path)


def run_all(pipeline: SmallPipeline, state: PipelineState) -> list[str]:
    """Do what the loop does, without commands; the stages that had to run."""
    ran = []
    for stage in pipeline.stages():
        if state.reasons(stage):
            ran.append(stage.name)
            state.stages[stage.name] = StageRecord(state.depends(stage), [str(path) for path in stage.made])
            make(stage, f"by {len(state.hashes)}")
            state.stages[stage.name].output, state.stages[stage.name].done = state.output_of(stage), True
    return ran


def test_what_is_done_and_unchanged_is_skipped_also_by_a_new_start(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    assert run_all(pipeline, state) == ["sft", "dpo", "measured"]
    assert run_all(pipeline, state) == []
    state.write(pipeline.folder)
    again = PipelineState.read(pipeline.folder)
    assert again == state and why(again, pipeline) == {}


def test_a_changed_key_runs_the_stage_and_what_depends_on_it(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    pipeline.data["sft"]["epochs"] = 2
    assert why(state, pipeline) == {"sft": ["sft.epochs: 1 → 2"]}
    assert run_all(pipeline, state) == ["sft", "dpo", "measured"]


def test_a_stage_that_ran_again_to_the_same_bytes_still_counts(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    pipeline.data["sft"]["epochs"] = 2
    stage = pipeline.stage("sft")
    state.stages["sft"].depends = state.depends(stage)
    assert why(state, pipeline) == {"dpo": ["stage sft has run again"]}


def test_a_changed_file_is_told_by_its_content_alone(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    os.utime(pipeline.folder / "pairs.jsonl", ns=(1, 1))
    (pipeline.folder / "new.txt").write_text("not read")
    assert why(state, pipeline) == {}
    (pipeline.folder / "pairs.jsonl").write_text("2\n")
    assert why(state, pipeline) == {"dpo": ["pairs.jsonl has changed"]}
    (pipeline.folder / "base/config.json").write_text('{"a": 1}')
    assert why(state, pipeline)["sft"] == ["base has changed"]


def test_a_file_of_the_same_size_and_time_is_still_another_one(pipeline: SmallPipeline) -> None:
    """As `cp -p`, `rsync -t` and archives leave it."""
    state, file = PipelineState(), pipeline.folder / "pairs.jsonl"
    run_all(pipeline, state)
    before, text = file.stat(), file.read_text()
    file.write_text("2" * len(text))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == before.st_mtime_ns
    assert why(state, pipeline) == {"dpo": ["pairs.jsonl has changed"]}


def test_what_a_reward_function_imports_from_beside_it_belongs_to_it(pipeline: SmallPipeline) -> None:
    (pipeline.folder / "reward.py").write_text("import json\n\ndef score():\n    from rules import best\n")
    (pipeline.folder / "rules.py").write_text("import data\nimport shades.red as red\n")
    (pipeline.folder / "data/2026").mkdir(parents=True)
    (pipeline.folder / "data/2026/notes.py").write_text("")
    (pipeline.folder / "shades").mkdir()
    for name in ("shades/__init__.py", "shades/red.py", "json.txt", "other.py"):
        (pipeline.folder / name).write_text("")
    pipeline.data["reward"] = {"type": "function", "path": "reward.py"}
    state = PipelineState()
    run_all(pipeline, state)
    (pipeline.folder / "data/2026/notes.py").write_text("1")  # a folder of data is not searched for modules
    (pipeline.folder / "other.py").write_text("1")
    assert why(state, pipeline) == {}
    for name in ("rules.py", "shades/red.py"):
        kept = (pipeline.folder / name).read_text()
        (pipeline.folder / name).write_text(f"{kept}\nBEST = 2\n")
        assert why(state, pipeline) == {"measured": ["reward.py has changed"]}
        (pipeline.folder / name).write_text(kept)
    assert why(state, pipeline) == {}


def test_a_state_of_an_earlier_version_is_read(pipeline: SmallPipeline) -> None:
    """Its hashes have the size and one time."""
    state = PipelineState()
    run_all(pipeline, state)
    state.hashes = {path: [facts[0], facts[1], facts[-1]] for path, facts in state.hashes.items()}
    state.write(pipeline.folder)
    assert why(PipelineState.read(pipeline.folder), pipeline) == {}


def test_a_file_that_came_to_a_model_s_folder_is_a_change(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    (pipeline.folder / "base/adapter.json").write_text("{}")
    assert why(state, pipeline)["sft"] == ["base has changed"]


def test_the_base_of_an_adapter_belongs_to_it(pipeline: SmallPipeline) -> None:
    adapter = pipeline.folder / "adapter"
    adapter.mkdir()
    said = {"base_model_name_or_path": "base", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    (adapter / "adapter_model.safetensors").write_text("a")
    pipeline.data["sft"]["model"]["path"] = pipeline.data["dpo"]["model"]["path"] = "adapter"
    state = PipelineState()
    run_all(pipeline, state)
    (pipeline.folder / "base/model.safetensors").write_text("b")
    assert why(state, pipeline)["sft"] == ["adapter has changed"]


def test_an_optional_path_is_read_too(pipeline: SmallPipeline) -> None:
    (pipeline.folder / "chat.jinja").write_text("a")
    pipeline.data["sft"]["chat_template"] = "chat.jinja"
    state = PipelineState()
    run_all(pipeline, state)
    (pipeline.folder / "chat.jinja").write_text("b")
    assert why(state, pipeline) == {"sft": ["chat.jinja has changed"]}


def test_an_output_that_is_gone_or_another_one_is_made_again(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    (pipeline.folder / "measured/evaluate.json").unlink()
    (pipeline.folder / "sft/model/model.safetensors").write_text("damaged")
    found = why(state, pipeline)
    assert found["measured"] == ["its output measured/evaluate.json is not there"]
    assert found["sft"] == ["its output sft/model has changed"] and found["dpo"] == ["sft/model has changed"]


def test_a_stage_that_had_only_begun_is_interrupted(pipeline: SmallPipeline) -> None:
    state = PipelineState()
    run_all(pipeline, state)
    state.stages["dpo"].done = False
    assert why(state, pipeline) == {"dpo": ["it was interrupted"]}


def test_secrets_are_not_kept(pipeline: SmallPipeline) -> None:
    pipeline.data["reward"] = {"type": "remote", "urls": ["http://u:pass@h/s"], "headers": {"Key": "hidden"}}
    state = PipelineState()
    run_all(pipeline, state)
    state.write(pipeline.folder)
    text = (pipeline.folder / "pipeline.json").read_text()
    assert "hidden" not in text and "pass@" not in text


@pytest.mark.parametrize("text", ["", "[]", '{"stages": {"sft": 1}}'])
def test_a_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(ConfigError, match=r"pipeline\.json is not as a pipeline has written it"):
        PipelineState.read(tmp_path)
