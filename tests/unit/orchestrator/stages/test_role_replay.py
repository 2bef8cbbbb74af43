"""What a role was trained on, from the samples that a run has kept; and how its update is compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.config.ppo import PpoConfig
from orchestrator.config.report import SampleFilesConfig, TokenColumn
from orchestrator.errors import ConfigError
from orchestrator.ppo.experience import Experience
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.run_difference import update_difference
from orchestrator.run.sample_files import write_samples
from orchestrator.stages.role_replay import TRAINED_ON, _metrics, _slowed, recorded_experience
from orchestrator.stages.step_samples import step_samples
from tests.unit.orchestrator.ppo.test_train_step import GRPO, log, scoring, step  # noqa: F401

EVERY: list[TokenColumn] = ["token_ids", *TRAINED_ON["actor"], *TRAINED_ON["critic"]]


def trained(file: Path, log: list[str], columns: Sequence[TokenColumn] = EVERY, **how: Any) -> Experience:  # noqa: F811
    """The experience of a step, whose samples are in `file`."""
    settings = {name: how[name] for name in ("advantage", "dynamic_sampling", "truncated") if name in how}
    result, _, _ = step(log, **how)
    config: Any = SimpleNamespace(ppo=PpoConfig.model_validate(settings), environment=None)
    samples = step_samples(config, 1, result.own, result.trained)
    samples = replace(samples, prompt_ids=range(len(samples.scored)))  # whoever draws here does not say them
    write_samples(samples, SampleFilesConfig(token_columns=list(columns)), file)
    return result.own.experience


@pytest.mark.parametrize(
    "how",
    [{}, {"truncated": {"type": "mask"}}, {"prompts": scoring(1, 1, 2, 3), "others": [scoring(5, 6)], **GRPO}],
    ids=["all", "masked", "left out"],
)
def test_what_was_trained_on_is_read_back_bit_for_bit(tmp_path: Path, log: list[str], how: Any) -> None:  # noqa: F811
    experience = trained(tmp_path / "samples/step.parquet", log, **how)
    for role in TRAINED_ON:
        was, now = getattr(experience, role), recorded_experience(tmp_path / "samples/step.parquet", role)
        width = int(was.lengths.max())
        for field in fields(now):
            before = getattr(was, field.name)
            before = before[:, :width] if before.dim() == 2 else before
            got = getattr(now, field.name)
            if field.name == "token_ids":  # anything may stand behind a row's end
                inside = torch.arange(width) < now.lengths.unsqueeze(1)
                before, got = before * inside, got * inside
            assert got.dtype == before.dtype and torch.equal(got, before), field.name


def test_a_run_that_has_not_kept_what_the_role_learns_from(tmp_path: Path, log: list[str]) -> None:  # noqa: F811
    file = tmp_path / "samples/step.parquet"
    mend = r"set report.samples.token_columns: \[token_ids, values, returns\]"
    with pytest.raises(ConfigError, match=f"is not there, from which the critic would learn; {mend}"):
        recorded_experience(file, "critic")
    trained(file, log, ["values"])
    with pytest.raises(ConfigError, match=f"has no column token_ids, returns; {mend}"):
        recorded_experience(file, "critic")
    file.write_text("nothing")
    with pytest.raises(ValueError, match="is not as a run has written it"):
        recorded_experience(file, "critic")


def test_a_role_that_was_not_trained_in_the_step(tmp_path: Path) -> None:
    lines = [{"step": 1, "lr/critic": 0.1}, {"step": 2, "lr/critic": 0.1, "lr/actor": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _metrics(tmp_path, 2, "actor") == lines[1]
    with pytest.raises(ConfigError, match=r"the actor was not trained in step 1 of .*, but critic"):
        _metrics(tmp_path, 1, "actor")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(ConfigError, match=r"nothing was trained in step 1 of .*: no response had a trained token"):
        _metrics(tmp_path, 1, "actor")
    with pytest.raises(ConfigError, match="no metrics of step 3; choose a step that it has done"):
        _metrics(tmp_path, 3, "actor")


def test_the_rates_that_an_alert_has_slowed_down(tmp_path: Path) -> None:
    before: Any = SimpleNamespace(step=4, state={"slowed": 0.5})
    assert _slowed(tmp_path, before) == 2.0, "none of the run's: it is slowed down no further"
    went = [{"step": 0, "factor": 0.5}, {"step": 4, "factor": 0.25}, {"step": 6, "factor": 0.125}, {"rule": "kl"}]
    (tmp_path / "alerts.jsonl").write_text("".join(json.dumps({"step": 9, **line}) + "\n" for line in went))
    assert _slowed(tmp_path, before) == 0.5, "the run went back to step 4, and on with a quarter"


def test_an_update_is_compared_by_its_metrics_and_what_it_left(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"

    def write(place: Path, value: float = 1.0) -> None:
        (place / "critic").mkdir(parents=True)
        save_file({"w": torch.full((3,), value)}, place / "critic/rank-0.safetensors")

    Checkpoints(run / "checkpoints", keep=3).save(2, {"step": 2}, write)
    write(again)
    kept = Checkpoints(run / "checkpoints", keep=3).of_step(2)
    assert kept is not None
    hashes = {"rank-0.safetensors": kept.hashes["critic/rank-0.safetensors"]}
    metrics = {"value/loss": 0.1, "score/mean": 3.0}
    same = update_difference(run, 2, "critic", (metrics, {"value/loss": 0.1}), again, hashes)
    assert same.first is None and same.lines[-1] == "the runs are the same, bit for bit"
    other = update_difference(run, 2, "critic", (metrics, {"value/loss": 0.2}), again, hashes)
    assert other.first is not None and other.first.differences == ("value/loss: 0.1 and 0.2",)
    (again / "critic/rank-0.safetensors").unlink()
    (again / "critic").rmdir()
    write(again, 2.0)
    other = update_difference(run, 2, "critic", (metrics, {"value/loss": 0.1}), again, {"rank-0.safetensors": "other"})
    assert other.first is not None and "critic's rank-0.safetensors" in other.first.differences[0]
    none = update_difference(run, 1, "critic", (metrics, {"value/loss": 0.1}), again, {})
    assert none.first is None and "neither checkpoints nor models could be" in none.lines[-1]
