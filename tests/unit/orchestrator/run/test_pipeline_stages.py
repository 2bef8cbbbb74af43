"""References between stages, what each needs, and what is wrong with a pipeline before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.loading import load_root
from orchestrator.config.pipeline import PipelineRun
from orchestrator.errors import ConfigError
from orchestrator.run.pipeline_stages import resolved_stages
from tests.unit.orchestrator.pipelines import SmallPipeline

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallPipeline:
    monkeypatch.chdir(tmp_path)
    return SmallPipeline(tmp_path)


def test_a_reference_is_the_output_of_the_stage_that_it_names(pipeline: SmallPipeline) -> None:
    sft, dpo, measured = pipeline.stages()
    assert dpo.overrides == ('dpo.model.path="sft/model"',) and dpo.config.dpo.model.path == "sft/model"  # type: ignore[attr-defined]
    assert (sft.needs, dpo.needs, measured.needs) == ((), ("sft",), ("dpo",))
    assert measured.made_by == ("sft", "dpo")
    assert [str(stage.output) for stage in (sft, dpo, measured)] == ["sft/model", "dpo/model", "measured/evaluate.json"]


def test_a_plain_path_to_another_stage_s_output_is_a_need_too(pipeline: SmallPipeline) -> None:
    pipeline.override("dpo", dpo__model__path="sft/model")
    assert pipeline.stage("dpo").needs == ("sft",)


def test_the_command_line_changes_every_stage_that_reads_the_key(pipeline: SmallPipeline) -> None:
    sft, dpo, measured = pipeline.stages("seed=7", "sft.epochs=3")
    assert [stage.config.seed for stage in (sft, dpo, measured)] == [7, 7, 7]
    assert sft.overrides == ("seed=7", "sft.epochs=3") and "sft.epochs=3" not in dpo.overrides


def test_what_a_policy_took_does_not_count_what_measures_it(pipeline: SmallPipeline) -> None:
    """A reward that a stage has made is read by the measurement, and by the best of N to pick."""
    stages = pipeline.data["pipeline"]["stages"]
    stages["best"] = {"command": "best-of-n", "overrides": {"run_dir": "best", "reward.path": "dpo/model/reward.py"}}
    pipeline.override("measured", **{"reward.path": "dpo/model/reward.py", "actor.model": {"path": "${sft.output}"}})
    assert pipeline.stage("measured").needs == ("sft", "dpo") and pipeline.stage("measured").made_by == ("sft",)
    assert pipeline.stage("best").made_by == ("sft", "dpo", "best")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dpo", {"dpo.model.path": "${stf.output}"}, "there is no stage stf; did you mean sft?"),
        ("sft", {"sft.model.path": "${dpo.output}"}, "dpo does not run before sft"),
        ("sft", {"sft.model.path": "dpo/model"}, "is made by the later stage dpo; put dpo first"),
        ("dpo", {"dpo.model.path": "${sft.model}"}, r"must be \$\{sft.output\} or \$\{sft.run_dir\}"),
        ("dpo", {"dpo.output": "sft/model"}, "the stages sft and dpo both write to sft/model"),
        ("dpo", {"dpo.output": "sft/model/deeper"}, "both write to sft/model"),
        ("sft", {"sft.output": "out"}, "pipeline.output=out lies in a folder of the stage sft"),
        ("sft", {"sft.epoch": 2}, "stage sft: .*sft.epoch: unknown key"),
    ],
)
def test_a_pipeline_that_cannot_run_is_refused(
    pipeline: SmallPipeline, name: str, overrides: dict[str, object], message: str
) -> None:
    pipeline.override(name, **overrides)
    with pytest.raises(ConfigError, match=message):
        pipeline.stages()


def test_only_measurements_can_be_compared(pipeline: SmallPipeline) -> None:
    pipeline.data["pipeline"]["compare"] = {"SFT": "sft", "PPO": "ppo"}
    with pytest.raises(ConfigError) as caught:
        pipeline.stages()
    assert "compare.SFT=sft: its command is sft" in str(caught.value) and "there is no such stage" in str(caught.value)


@pytest.mark.parametrize("said", [(), ("dtype=float32", "steps=3", "rollout.prompts_per_step=32")])
def test_the_smoke_pipeline_leads_from_one_model_to_four_answers(
    said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    file = Path("configs/pipeline-smoke.yaml")
    run = load_root(PipelineRun, file, said)
    stages = {stage.name: stage for stage in resolved_stages(run.pipeline, file, said)}
    assert stages["measured-ppo"].made_by == ("demonstrations", "sft", "comparisons", "reward", "ppo")
    assert stages["measured-dpo"].made_by == ("demonstrations", "sft", "comparisons", "dpo")
    assert stages["measured-sft"].made_by == ("demonstrations", "sft")
    heldout = {str(stages[name].config.prompts.heldout) for name in run.pipeline.compare.values()}  # type: ignore[attr-defined]
    assert len(heldout) == 1, "all are measured on the same prompts"
