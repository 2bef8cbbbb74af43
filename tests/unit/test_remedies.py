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
from tests.benchmarks.remedies import CONFIG, REMEDIES, RESULTS, Outcome, Run, main, record, results_in, table


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
    file = tmp_path / "results.jsonl"
    for run in runs:
        run.folder.mkdir()
        results = [evaluated(2 * i, gold, "after" if i == 4 else "") for i, gold in enumerate(scores[run.seed])]
        lines = "".join(json.dumps(result.to_json()) + "\n" for result in results)
        (run.folder / EVALUATION_FILE).write_text(lines, encoding="utf-8")
        assert run.whole
        record(file, run, Outcome.of(run.evaluations()))
    recorded = {("none", 1): Outcome(0.9, 8, 80.0, 0.9, 0.5, 6), ("none", 2): Outcome(0.7, 4, 40.0, 0.5, 0.7, 8)}
    assert results_in(file) == recorded
    row = table(recorded).splitlines()[-1]
    assert row == "| none | 2 | 0.80 ± 1.27 | 6 ± 25 | 60 ± 254 | 0.70 ± 2.54 | 0.60 ± 1.27 | 7 ± 13 |"


def test_what_is_recorded_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    started: list[list[str]] = []

    def train(command: list[str], check: bool) -> None:
        started.append(command[3:])
        run = Run(tmp_path, "kl", 2)
        run.folder.mkdir(exist_ok=True)
        (run.folder / EVALUATION_FILE).write_text(json.dumps(evaluated(0, 0.1, "after").to_json()) + "\n")

    monkeypatch.setattr("subprocess.run", train)
    record(file, Run(tmp_path, "kl", 1), Outcome(0.9, 8, 80.0, 0.9, 0.5, 6))
    arguments = ["remedies", "--seeds", "2", "--only", "kl", "--root", str(tmp_path), "--results", str(file)]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert [command[0] for command in started] == ["reward", "train"] and "seed=2" in started[0]
    assert results_in(file)["kl", 2] == Outcome(0.1, 0, 0.0, 0.1, 0.1, 0)
    started.clear()
    main()
    assert not started


def test_a_run_that_was_cut_off_is_not_whole(tmp_path: Path) -> None:
    run = Run(tmp_path, "none", 1)
    run.folder.mkdir()
    (run.folder / EVALUATION_FILE).write_text(json.dumps(evaluated(0, 0.1, "before").to_json()) + "\n")
    assert not run.whole


def test_the_readme_shows_what_is_recorded() -> None:
    assert table(results_in(RESULTS)) in Path("orchestrator/README.md").read_text(encoding="utf-8")
