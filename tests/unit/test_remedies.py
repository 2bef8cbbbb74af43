"""The runs and the table of `make remedies`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config.loading import load_config, load_root
from orchestrator.config.reward_training import QUALITY
from orchestrator.config.roots import ROOTS
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.run_files import EVALUATION_FILE
from orchestrator.run.checkpoint import Checkpoints
from tests.benchmarks.remedies import CONFIG, REMEDIES, Outcome, Run, table


@pytest.mark.parametrize("name", REMEDIES)
def test_every_run_is_one_that_can_start(name: str, tmp_path: Path) -> None:
    reward, train = Run(tmp_path, name, 3).commands
    assert (reward[:2], train[:2]) == (["reward", CONFIG], ["train", CONFIG])
    assert load_root(ROOTS["reward"], Path(CONFIG), reward[2:])
    config = load_config(CONFIG, train[2:])
    assert (config.seed, config.run_dir) == (3, str(tmp_path / f"{name}-3"))


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, "kl", 1)
    assert [command[0] for command in run.commands] == ["reward", "train"]
    (tmp_path / "reward-1-1").mkdir()
    (tmp_path / "reward-1-1" / QUALITY).write_text("{}")
    assert [command[0] for command in run.commands] == ["train"]
    run.folder.mkdir()
    assert run.commands[0][-1] != "--resume" and not run.folder.exists(), "cut off before its first checkpoint"
    monkeypatch.setattr(Checkpoints, "newest", lambda folder: "a checkpoint")
    run.folder.mkdir()
    assert run.commands[0][-1] == "--resume" and run.folder.exists()


def test_an_ensemble_is_there_when_all_its_members_are(tmp_path: Path) -> None:
    run = Run(tmp_path, "worst", 1)
    (first, *others) = run.models
    first.mkdir(parents=True)
    (first / QUALITY).write_text("{}")
    assert [command[0] for command in run.commands] == ["reward", "train"] and not first.exists()
    for model in (first, *others):
        model.mkdir(parents=True)
        (model / QUALITY).write_text("{}")
    assert [command[0] for command in run.commands] == ["train"]


def evaluated(step: int, gold: float, label: str = "step") -> EvaluationResult:
    nothing = Estimate(0.0, 0.0)
    kl = Estimate(10.0 * step, 0.0)
    return EvaluationResult(step, label, 2, nothing, Estimate(gold, 0.1), kl, nothing, 0.0, [], [0.0, 0.0])


def test_the_table_holds_the_peak_and_where_a_stop_ends(tmp_path: Path) -> None:
    scores = {1: [0.1, 0.5, 0.4, 0.3, 0.9], 2: [0.1, 0.3, 0.7, 0.6, 0.5]}
    runs = [Run(tmp_path, "none", seed) for seed in scores]
    for run in runs:
        run.folder.mkdir()
        results = [evaluated(2 * i, gold, "after" if i == 4 else "") for i, gold in enumerate(scores[run.seed])]
        lines = "".join(json.dumps(result.to_json()) + "\n" for result in results)
        (run.folder / EVALUATION_FILE).write_text(lines, encoding="utf-8")
    assert Outcome.of(runs[0].evaluations()) == Outcome(0.9, 8, 80.0, 0.9, 0.5, 6)
    assert Outcome.of(runs[1].evaluations()) == Outcome(0.7, 4, 40.0, 0.5, 0.7, 8)
    row = table(runs).splitlines()[-1]
    assert row == "| none | 2 | 0.80 ± 1.27 | 6 ± 25 | 60 ± 254 | 0.70 ± 2.54 | 0.60 ± 1.27 | 7 ± 13 |"


def test_runs_that_are_not_whole_are_not_counted(tmp_path: Path) -> None:
    run = Run(tmp_path, "none", 1)
    run.folder.mkdir()
    (run.folder / EVALUATION_FILE).write_text(json.dumps(evaluated(0, 0.1, "before").to_json()) + "\n")
    assert "none" not in table([run])
