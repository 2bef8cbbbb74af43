"""Where two runs part: every kind of content, planted one difference at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from orchestrator.errors import ConfigError
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.reporter import Reporter
from orchestrator.report.run_files import samples_of
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.run_difference import as_json, run_difference

STEPS = 4


def a_run(folder: Path, seconds: float = 1.0) -> Path:
    """A run of four steps with all its files; `seconds` is what the clock said."""
    report = Reporter(
        folder,
        name=folder.name,
        config_yaml=f"seed: 1\nrun_dir: {folder}\n",
        data=["prompts: 4"],
        versions={"torch": "2.11"},
        tensorboard=False,
        html=False,
        steps=STEPS,
    )
    with report:
        report.evaluation(
            EvaluationResult(0, "before", 2, *[Estimate(0.5, 0.1)] * 2, *[Estimate(1.0, 0.1)] * 2, 0.5, [], [0.4, 0.6])
        )
        for step in range(1, STEPS + 1):
            rows = [SampleRow("p", f"answer {step} {n}", 0.5 * n, None, 0.1, True) for n in range(2)]
            report.step(
                step,
                {"score/mean": 0.1 * step, "time/step_s": seconds, "memory/host_peak_gib": seconds},
                rows,
                {"samples": 2},
                lambda path, step=step: keep(path, step),
            )
            if step % 2 == 0:

                def write(place: Path, step: int = step) -> None:
                    (place / "actor").mkdir()
                    save_file({"w": torch.full((3,), float(step))}, place / "actor" / "rank-0.safetensors")

                Checkpoints(folder / "checkpoints", keep=3).save(step, {"step": step, "kl": 0.1 * step}, write)
    (folder / "actor").mkdir()
    save_file({"w": torch.ones(3)}, folder / "actor" / "model.safetensors")
    return folder


def keep(path: Path, step: int) -> None:
    """Write all samples of a step."""
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"seed": [step, 5], "values": [[0.5], [0.25, step / 8]]}), path)


def another_value(run: Path) -> None:
    file = samples_of(run, 3)
    parquet.write_table(pyarrow.table({"seed": [3, 5], "values": [[0.5], [0.25, 0.75]], "more": [1, 2]}), file)


def fewer_samples(run: Path) -> None:
    parquet.write_table(pyarrow.table({"seed": [2]}), samples_of(run, 2))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return a_run(tmp_path / "first"), a_run(tmp_path / "second", seconds=2.0)


def test_the_same_run_with_another_clock(runs: tuple[Path, Path]) -> None:
    difference = run_difference(*runs)
    assert difference.first is None
    assert difference.lines == [
        "configuration the same",
        "versions      the same",
        "data          the same",
        "metrics       the same: 4 steps",
        "samples       the same: 8 samples",
        "evaluations   the same: 1 evaluation",
        "ledger        the same: 4 steps",
        "alerts        the same: 0 alerts",
        "all samples   the same: 4 steps",
        "checkpoints   the same: 2 checkpoints",
        "models        the same: 1 model",
        "the runs are the same, bit for bit",
    ]
    assert json.loads(as_json(difference))["same"] is True


def edited(name: str, before: str, after: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / name).read_text()
        assert before in text
        (run / name).write_text(text.replace(before, after, 1))

    return edit


def another_state(run: Path) -> None:
    """A checkpoint that is whole, with other weights."""
    shutil.rmtree(run / "checkpoints/step-000004")

    def write(place: Path) -> None:
        (place / "actor").mkdir()
        save_file({"w": torch.tensor([4.0, 4.0, 4.5])}, place / "actor" / "rank-0.safetensors")

    Checkpoints(run / "checkpoints", keep=3).save(4, {"step": 4, "kl": 0.4}, write)


def another_model(run: Path) -> None:
    file = run / "actor" / "model.safetensors"
    save_file({"w": load_file(file)["w"] + 0.125}, file)


PLANTED: list[tuple[Callable[[Path], None], str, int | None]] = [
    (edited("metrics.jsonl", "0.2,", "0.25,"), "step 2 score/mean: 0.2 and 0.25", 2),
    (edited("metrics.jsonl", '"score/mean": 0.1,', ""), "step 1 score/mean: 0.1 and null", 1),
    (edited("samples.jsonl", "answer 3 1", "answer 3 x"), "step 3 line 2 response: answer 3 1 and answer 3 x", 3),
    (edited("evaluation.jsonl", '"prompts": 2', '"prompts": 3'), "step 0 prompts: 2 and 3", 0),
    (edited("ledger.jsonl", '"samples": 2', '"samples": 3'), "step 1 samples: 2 and 3", 1),
    (another_value, "step 3 sample 1 values: [0.25, 0.375] and [0.25, 0.75]", 3),
    (fewer_samples, "step 2 sample 1 seed: 5 and null", 2),
    (another_state, "step 4 actor/rank-0.safetensors: w: 1 of 3 numbers, by at most 0.5", 4),
    (another_model, "actor/model.safetensors: w: 3 of 3 numbers, by at most 0.125", None),
]


@pytest.mark.parametrize(("plant", "said", "step"), PLANTED, ids=[said for _, said, _ in PLANTED])
def test_what_differs_is_named(
    runs: tuple[Path, Path], plant: Callable[[Path], None], said: str, step: int | None
) -> None:
    plant(runs[1])
    difference = run_difference(*runs)
    assert difference.first is not None
    assert difference.first.differences[0] == said
    assert difference.first.step == step
    assert difference.lines[-1] == f"the runs part{'' if step is None else f' at step {step}'}: {said}"
    assert json.loads(as_json(difference))["first"] == {"step": step, "what": said}


def test_the_earliest_difference_is_the_result(runs: tuple[Path, Path]) -> None:
    for plant, _, _ in reversed(PLANTED[:3]):
        plant(runs[1])
    assert run_difference(*runs).lines[-1].startswith("the runs part at step 1")


def test_a_run_that_went_further(runs: tuple[Path, Path]) -> None:
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "metrics.jsonl").write_text("".join(lines[:3]))
    difference = run_difference(*runs)
    assert difference.lines[-1] == f"the runs part at step 4: step 4 only in {runs[0]}"


def test_settings_alone_do_not_make_runs_different(runs: tuple[Path, Path]) -> None:
    edited("config.yaml", "seed: 1", "seed: 1\ndtype: bfloat16")(runs[1])
    edited("run.json", '"2.11"', '"2.12"')(runs[1])
    edited("run.json", "prompts: 4", "prompts: 5")(runs[1])
    lines = run_difference(*runs).lines
    assert lines[:3] == [
        "configuration dtype: null and bfloat16",
        "versions      torch: 2.11 and 2.12",
        "data          1: prompts: 4 and prompts: 5",
    ]
    assert lines[-1] == "the runs are the same, bit for bit"


def test_only_some_differences_are_shown(runs: tuple[Path, Path]) -> None:
    text = (runs[1] / "samples.jsonl").read_text()
    (runs[1] / "samples.jsonl").write_text(text.replace("answer", "other"))
    assert [line for line in run_difference(*runs).lines if "other differences" in line] == [
        f"{'':14}and 4 other differences"
    ]


def test_a_damaged_file_of_samples_is_named(runs: tuple[Path, Path]) -> None:
    samples_of(runs[1], 2).write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"samples/step-000002\.parquet is not as a run has written it"):
        run_difference(*runs)


def test_a_run_that_has_lost_all_its_samples_is_not_the_same(runs: tuple[Path, Path]) -> None:
    shutil.rmtree(runs[1] / "samples")
    assert run_difference(*runs).lines[-1] == f"the runs part at step 1: step 1 only in {runs[0]}"


def test_a_run_that_keeps_no_samples_is_compared_by_the_others(runs: tuple[Path, Path]) -> None:
    shutil.rmtree(runs[1] / "samples")
    with (runs[1] / "config.yaml").open("a") as config:
        config.write("report: {samples: null}\n")
    assert run_difference(*runs).first is None
    for run in runs:
        shutil.rmtree(run / "samples", ignore_errors=True)
    assert not [line for line in run_difference(*runs).lines if line.startswith("all samples")]


def test_no_run(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"holds no metrics\.jsonl; name the run_dir of a run"):
        run_difference(runs[0], tmp_path / "nothing")


def test_damaged_files_are_named(runs: tuple[Path, Path]) -> None:
    file = next((runs[1] / "checkpoints/step-000002/actor").iterdir())
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ConfigError, match=re.escape(f"{file.parents[1]} is damaged: actor/rank-0.safetensors holds")):
        run_difference(*runs)


@pytest.mark.parametrize("of", [0, 1])
def test_a_step_of_which_one_run_has_lost_its_samples(of: int, runs: tuple[Path, Path]) -> None:
    samples_of(runs[of], 3).unlink()
    difference = run_difference(*runs)
    assert difference.lines[-1] == f"the runs part at step 3: step 3 only in {runs[1 - of]}"
    assert "all samples   the same: 3 steps" in difference.lines
    assert run_difference(*runs, only=2).first is None


def test_runs_whose_weights_could_not_be_compared_are_not_called_the_same(runs: tuple[Path, Path]) -> None:
    shutil.rmtree(runs[1] / "checkpoints/step-000004")
    assert run_difference(*runs, only=2).lines[-1] == "the runs are the same, bit for bit"
    said = "the runs are the same in all that was compared; neither checkpoints nor models could be"
    assert run_difference(*runs, only=4).lines[-1] == said
