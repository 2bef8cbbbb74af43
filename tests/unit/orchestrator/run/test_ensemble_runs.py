"""Which members of an ensemble of reward models are trained, where they begin, and what they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator.stages.reward_training
from orchestrator.config.loading import dump_config, load_root, validate_root
from orchestrator.config.reward_training import COMPARISONS, QUALITY, RewardTrainingRun
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.data.comparisons import digest, keep, split
from orchestrator.data.preference_pairs import Pairs
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.ensemble_runs import member_runs
from orchestrator.run.model_contents import model_contents
from orchestrator.stages.reward_training import train_reward
from tests.unit.orchestrator.run.saved_runs import REWARD
from tests.unit.orchestrator.stages.test_sampled_pairs import ranked


def ensemble(folder: Path, *overrides: str) -> RewardTrainingRun:
    file = folder / "reward.yaml"
    file.write_text(REWARD % folder)
    return load_root(RewardTrainingRun, file, ["reward_training.ensemble.members=3", *overrides])


def begun(run: RewardTrainingRun, *, ended: bool = False, **more: Any) -> None:
    """The member has a checkpoint and, if it has ended, its model. `more`: of the state in the checkpoint."""
    state = {"config": dump_config(run), **more}
    Checkpoints(Path(run.run_dir) / "checkpoints", keep=2).save(2, state, lambda folder: None)
    if ended:
        Path(run.reward_training.output).mkdir(parents=True)
        (Path(run.reward_training.output) / QUALITY).write_text("{}")


def test_each_member_has_folders_of_its_own_and_what_is_written_there_is_read_again(tmp_path: Path) -> None:
    runs = ensemble(tmp_path).runs
    assert [run.reward_training.output for run in runs] == [f"{tmp_path}/taste/member-{n}" for n in (1, 2, 3)]
    assert [run.run_dir for run in runs] == [f"{tmp_path}/taste/member-{n}-run" for n in (1, 2, 3)]
    for run in runs:
        again = validate_root(RewardTrainingRun, parse_yaml(dump_config(run)), "written")
        assert again == run and again.runs == [run]
    alone = ensemble(tmp_path, "reward_training.ensemble=null")
    assert alone.runs == [alone] and alone.training_seed == alone.seed


@pytest.mark.parametrize("count", [10, 11, 12, 13])
def test_what_the_members_differ_in(tmp_path: Path, count: int) -> None:
    groups = ranked([[1.0, 0.0]] * count)

    def heldout(run: RewardTrainingRun) -> set[int]:
        return set(split(groups, run.reward_training, run.seed).heldout.groups.tolist())

    fraction = "reward_training.heldout_fraction=0.33333333333"
    folds = ensemble(tmp_path, "reward_training.ensemble.vary=fold", fraction).runs
    assert {run.training_seed for run in folds} == {folds[0].seed}
    assert sorted(group for run in folds for group in heldout(run)) == list(range(count)), "the folds are all groups"
    seeds = ensemble(tmp_path, fraction).runs
    assert seeds[0].training_seed == seeds[0].seed and len({run.training_seed for run in seeds}) == 3
    assert heldout(seeds[0]) == heldout(seeds[1]) == heldout(seeds[2]) == heldout(folds[0])


def test_a_member_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    config = ensemble(tmp_path)
    first, second, _ = config.runs
    assert [run.resume for run in member_runs(config, None)] == [None] * 3
    begun(first, ended=True)
    begun(second)
    assert [(run.resume, run.done) for run in member_runs(config, "newest")] == [
        ("newest", True),
        ("newest", False),
        (None, False),
    ]
    longer = ensemble(tmp_path, "reward_training.epochs=2", "report.html=false")
    assert [run.done for run in member_runs(longer, "newest")] == [False] * 3, "it has not been trained for so long"
    elsewhere = ensemble(tmp_path, "report.html=false")
    assert [run.done for run in member_runs(elsewhere, "newest")] == [True, False, False]
    with pytest.raises(ConfigError, match=r"--resume-from 2: .* reward_training\.output=.*/taste/member-1"):
        member_runs(config, 2)
    alone = ensemble(tmp_path, "reward_training.ensemble.member=2")
    assert [run.config for run in member_runs(alone, 2)] == [alone]


def test_all_members_learn_from_what_the_first_has_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, questions = ensemble(tmp_path), object()
    preferences, told = ranked([[1.0, 0.0], [0.0, 1.0]]), []

    def trained(run: RewardTrainingRun, resume: Any, source: Any) -> None:
        told.append((run, resume, source))
        if run == config.runs[0]:
            keep(preferences, Path(run.run_dir) / COMPARISONS)

    monkeypatch.setattr(orchestrator.stages.reward_training, "_train", trained)
    train_reward(config, None, questions)  # type: ignore[arg-type]
    assert [run for run, _, _ in told] == config.runs
    assert told[0][2] is questions
    for _, _, source in told[1:]:
        assert isinstance(source, Pairs) and source.preferences.ranks.tolist() == [1.0, 0.0, 0.0, 1.0]
    begun(config.runs[0], ended=True)
    begun(config.runs[1])
    told.clear()
    train_reward(config, "newest", questions)  # type: ignore[arg-type]
    assert [(run, resume) for run, resume, _ in told] == [(config.runs[1], "newest"), (config.runs[2], None)]
    assert all(isinstance(source, Pairs) for _, _, source in told)


def test_a_member_that_has_learned_from_other_pairs_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the pairs has changed since: the members that come would learn from others than those that are
    done."""
    config, told = ensemble(tmp_path), list[RewardTrainingRun]()
    before, after = (Pairs(ranked([[1.0, 0.0], ranks]), "") for ranks in ([1.0, 0.0], [0.0, 1.0]))
    begun(config.runs[0], ended=True, comparisons=digest(before.preferences))
    monkeypatch.setattr(orchestrator.stages.reward_training, "_train", lambda run, resume, source: told.append(run))
    train_reward(config, "newest", before)
    assert told == config.runs[1:]
    told.clear()
    train_reward(config, "newest", after)
    assert told == config.runs, "which is refused, since its checkpoint is of other comparisons"


def test_a_member_that_started_from_other_weights_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "model.safetensors").write_text("a")
    config = ensemble(tmp_path, f"reward_training.model.path={folder}")
    begun(config.runs[0], ended=True, models=model_contents(config.runs[0]))
    assert member_runs(config, "newest")[0].done
    (folder / "model.safetensors").write_text("b")
    assert not member_runs(config, "newest")[0].done


def test_a_member_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"member=4 is more than members=3"):
        ensemble(tmp_path, "reward_training.ensemble.member=4")
