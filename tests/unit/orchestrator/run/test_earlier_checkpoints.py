"""Going on from another checkpoint than the newest: which one, and what is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator.stages.ppo
from orchestrator.config.loading import dump_config
from orchestrator.data.ppo_data import PpoData
from orchestrator.data.prompts import Questions
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.run.checkpoint import MODELS, Checkpoints
from orchestrator.run.model_contents import ContentsMeanwhile
from orchestrator.run.resume_rules import rules_of
from orchestrator.run.resuming import Resume, changed_code, checkpoint_to_resume, set_aside, take_up
from tests.unit.orchestrator.run.saved_runs import Saved, rewarded, rewarding


def test_an_earlier_checkpoint_is_picked(saved: Saved) -> None:
    def step_of(resume: Resume, *overrides: str) -> int | None:
        found = checkpoint_to_resume(saved.config(*overrides), resume)
        return found.step if found else None

    assert [step_of(resume) for resume in (None, "newest", 4, 2)] == [None, 4, 4, 2]
    with pytest.raises(ConfigError, match="no whole checkpoint of step 3; it has those of 2, 4"):
        step_of(3)
    (saved.run_dir / "actor").mkdir()
    (saved.run_dir / "actor/tetrarch.json").write_text('{"step": 6}')
    with pytest.raises(ConfigError, match="has done all its steps"):
        step_of("newest")
    assert step_of(2) == 2
    assert step_of(2, "steps=2") == 2  # to get the models of that step
    with pytest.raises(ConfigError, match=r"steps=1, but .*step-000002 is at step 2"):
        step_of(2, "steps=1")


def test_what_came_later_is_set_aside_and_not_deleted(saved: Saved) -> None:
    run_dir = saved.run_dir
    (run_dir / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4, 5)))
    (run_dir / "actor").mkdir()
    (run_dir / "actor/tetrarch.json").write_text('{"step": 6}')
    (run_dir / "checkpoints/step-000004-copy").mkdir()
    (run_dir / "samples").mkdir()
    for step in (1, 2, 3, 4):
        (run_dir / f"samples/step-{step:06d}.parquet").write_text(str(step))
    first = set_aside(run_dir, 2, ("actor", "critic", "actor_ema"))
    assert first == run_dir / "set-aside/1"
    assert saved.checkpoints.steps() == [2] and not (run_dir / "actor").exists()
    assert Checkpoints(first / "checkpoints", keep=2).steps() == [4]
    assert (first / "actor/tetrarch.json").is_file()
    for folder, steps in ((run_dir, "12"), (first, "34")):
        assert "".join(sorted(path.read_text() for path in (folder / "samples").iterdir())) == steps
    assert (first / "metrics.jsonl").read_text() == (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert set_aside(run_dir, 2, ("actor", "critic", "actor_ema")) is None
    saved.checkpoints.save(3, {}, lambda folder: None)
    assert set_aside(run_dir, 2, ("actor", "critic", "actor_ema")) == run_dir / "set-aside/2"


def test_the_reward_model_that_a_run_starts_from_is_never_moved(saved: Saved) -> None:
    """Some keep it in `run_dir/reward`; what a retraining leaves has another name."""
    run_dir, leaves = saved.run_dir, rules_of(saved.config()).leaves
    for name in ("reward/model", "reward_retrained", "critic"):
        (run_dir / name).mkdir(parents=True)
    first = set_aside(run_dir, 2, leaves)
    assert first is not None
    assert (run_dir / "reward/model").is_dir() and not (run_dir / "reward_retrained").exists()
    assert {path.name for path in first.iterdir()} == {"checkpoints", "reward_retrained", "critic"}


def test_a_damaged_checkpoint_is_told_and_what_came_after_the_one_before_it_is_set_aside(saved: Saved) -> None:
    run_dir, config = saved.run_dir, saved.config()
    (run_dir / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)))
    (run_dir / "checkpoints/step-000004/manifest.json").write_text("{")
    found = checkpoint_to_resume(config, "newest")
    assert found is not None and found.step == 2
    damaged, later = take_up(run_dir, found, config, "newest")
    assert "step-000004 is damaged: manifest.json cannot be read" in damaged and "going on from step 2" in damaged
    assert later == f"what came after step 2 is in {run_dir / 'set-aside/1'}"
    assert len((run_dir / "set-aside/1/metrics.jsonl").read_text().splitlines()) == 4


def test_what_a_reward_model_says_of_its_quality_is_set_aside_with_its_steps(tmp_path: Path) -> None:
    run_dir = rewarded(tmp_path)
    (run_dir / "reward_quality.json").write_text("{}")
    checkpoint = checkpoint_to_resume(rewarding(tmp_path), 2)
    assert checkpoint is not None
    (told,) = take_up(run_dir, checkpoint, rewarding(tmp_path), 2)
    assert told == f"what came after step 2 is in {run_dir / 'set-aside/1'}"
    assert sorted(p.name for p in run_dir.iterdir()) == ["checkpoints", "set-aside"]
    assert (run_dir / "set-aside/1/reward_quality.json").is_file()


def test_where_every_checkpoint_is_damaged_each_is_named(saved: Saved) -> None:
    for step in (2, 4):
        (saved.run_dir / f"checkpoints/step-{step:06d}/manifest.json").unlink()
    with pytest.raises(
        ConfigError, match=r"no whole checkpoint; put the files back(.|\n)*step-000004 is damaged(.|\n)*2"
    ):
        checkpoint_to_resume(saved.config(), "newest")


def test_a_run_that_goes_on_sets_aside_and_tells_before_it_loads_anything(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve_models(*arguments: Any) -> Any:
        raise TetrarchError("far enough")

    monkeypatch.setattr(orchestrator.stages.ppo, "resolve_models", resolve_models)
    (saved.run_dir / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)))
    with pytest.raises(TetrarchError, match="far enough"):
        orchestrator.stages.ppo.train(saved.config("steps=20"), 2, PpoData(Questions([], [], {}, "none"), {}))
    shown = capsys.readouterr()
    told = shown.out + shown.err
    assert "steps: 6 in the checkpoint, now 20" in told
    assert "what came after step 2 is in" in told and (saved.run_dir / "set-aside/1/checkpoints/step-000004").is_dir()
    assert len((saved.run_dir / "metrics.jsonl").read_text().splitlines()) == 2


def test_code_that_has_changed_in_its_place_is_told(saved: Saved, tmp_path: Path) -> None:
    reward, helper = tmp_path / "scores.py", tmp_path / "words.py"
    reward.write_text("import words\n\ndef score(prompts, responses, **more): return [0.0] * len(prompts)\n")
    helper.write_text("GOOD = 1\n")
    config = saved.config(f"reward={{type: function, path: {reward}}}")
    contents = ContentsMeanwhile(config)
    assert contents.wait(60)
    state = {"config": dump_config(config), MODELS: contents.known()}
    saved.checkpoints.save(6, state, lambda folder: None)

    def told() -> list[str]:
        found = checkpoint_to_resume(config, "newest")
        assert found is not None
        return take_up(saved.run_dir, found, config, "newest")

    assert told() == []
    helper.write_text("GOOD = 2\n")
    changed = "changed since the checkpoint; the run goes on with what is there now"
    assert told() == [f"reward.path: words.py has {changed}"]
    reward.write_text("def score(prompts, responses, **more): return [1.0] * len(prompts)\n")
    assert told() == [f"reward.path: scores.py, words.py have {changed}"]
    found = checkpoint_to_resume(config, "newest")
    assert found is not None and changed_code(found, config, {"reward.path"}) == [], "another path is told as such"
