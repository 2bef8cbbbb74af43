"""`tetrarch plan --calibrate`: what was measured is what is predicted, and a run without steps is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.config import BesideCounted, CpuCosts
from cluster.estimate.memory import GIB
from orchestrator.commands import app as cli
from orchestrator.config.loading import dump_config, load_config
from orchestrator.errors import ConfigError
from orchestrator.planning import predicted_step
from orchestrator.planning.calibration import calibrated
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.predicted_step import response_lengths

ROOT = Path(__file__).resolve().parents[4]


def finished_run(folder: Path, steps: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config(ROOT / "configs/llama3-8b-2x8.yaml")))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def step(factor: float) -> dict[str, float]:
    times = {"time/generate_s": 50.0, "time/score_s": 30.0, "time/update_s": 200.0, "time/push_s": 4.0}
    return {"response/length_mean": 512.0, "lr/actor": 1e-6, **{key: factor * s for key, s in times.items()}}


def test_the_prediction_is_the_median_of_the_measured_steps(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", [step(9), step(1), step(0.5), step(1.5)])  # the first one warms up
    fitted = calibrated(run)
    assert fitted.response_share == 0.5
    planned = layout(load_config(run / "config.yaml"), fitted)
    assert planned.step.phases == pytest.approx({"generate": 50, "score": 30, "update": 200, "push": 4}, rel=1e-3)
    assert load_efficiency(run / "efficiency.yaml") == fitted


def test_lengths_are_measured_too_and_the_prediction_still_agrees(tmp_path: Path) -> None:
    lengths = {"p50": 100.0, "p90": 600.0, "p99": 900.0, "max": 1000.0}
    told = {f"response/length_{key}": tokens for key, tokens in lengths.items()}
    run = finished_run(tmp_path / "run", [{**step(1), **told, "prompt/length_mean": 256.0}] * 3)
    fitted = calibrated(run)
    assert fitted.response_quantiles == {0.5: 0.0977, 0.9: 0.5859, 0.99: 0.8789, 1.0: 0.9766}
    assert fitted.prompt_share == 0.25 and fitted.response_limit == 1024
    planned = layout(load_config(run / "config.yaml"), fitted)
    assert planned.step.lengths is not None and planned.step.lengths.mean == pytest.approx(512, rel=1e-3)
    assert planned.step.phases == pytest.approx({"generate": 50, "score": 30, "update": 200, "push": 4}, rel=1e-3)
    assert load_efficiency(run / "efficiency.yaml") == fitted


def test_without_gpus_the_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busier machine at the time of a later plan changes nothing, and no such file is taken for GPUs."""
    model = "meta-llama/Meta-Llama-3-8B"
    change = [f"{role}.model={{path: {model}}}" for role in ("actor", "reward", "critic")]
    config = load_config(ROOT / "configs/tiny.yaml", change)
    run = finished_run(tmp_path / "run", [step(1)])
    (run / "config.yaml").write_text(dump_config(config))
    fitted = calibrated(run)
    before = layout(config, fitted).step.phases
    assert before == pytest.approx({"generate": 50, "score": 30, "update": 200, "push": 4}, rel=1e-2)
    monkeypatch.setattr(predicted_step, "operations_per_s", lambda dtype: 1.0)
    monkeypatch.setattr(predicted_step, "memory_per_s", lambda: 1.0)
    assert layout(config, fitted).step.phases == before
    monkeypatch.undo()
    gpus = str(ROOT / "configs/llama3-8b-2x8.yaml")
    for option in (["--efficiency", str(run / "efficiency.yaml")], ["--calibrate", str(run)]):
        said = CliRunner().invoke(cli.app, ["plan", gpus, *option])
        assert said.exit_code == 2 and "calibrate on a run with device=cuda" in " ".join(said.stderr.split())


def test_the_rates_of_a_machine_are_those_that_are_known_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted_step, "operations_per_s", lambda dtype: 1.0)
    monkeypatch.setattr(predicted_step, "memory_per_s", lambda: 2.0)
    plain = load_efficiency()
    known = plain.model_copy(update={"cpu": CpuCosts(gflops={"float32": 3}, memory_gb_s=7)})
    assert predicted_step.machine_rates("float32", plain) == (1.0, 2.0)
    assert predicted_step.machine_rates("float32", known) == (3e9, 7e9)
    assert predicted_step.machine_rates("bfloat16", known) == (1.0, 7e9)


@pytest.mark.parametrize("cut", [None, -1.0, 7.0, "half"])
def test_a_share_of_cut_responses_that_is_none_does_not_break_it(tmp_path: Path, cut: Any) -> None:
    told: dict[str, Any] = {f"response/length_{key}": 100.0 for key in ("p50", "p90", "p99", "max")}
    row = {**step(1), **told, "prompt/length_mean": 256.0, "response/truncated_fraction": cut}
    assert calibrated(finished_run(tmp_path / "run", [row] * 3)).response_limit == 1024


def test_another_limit_cuts_the_responses_elsewhere(tmp_path: Path) -> None:
    lengths = {"p50": 400.0, "p90": 1024.0, "p99": 1024.0, "max": 1024.0}
    told = {f"response/length_{key}": tokens for key, tokens in lengths.items()} | {"prompt/length_mean": 256.0}
    cut = {**step(1), **told, "response/length_mean": 496.0, "response/truncated_fraction": 0.2}
    fitted = calibrated(finished_run(tmp_path / "run", [cut] * 3))
    assert fitted.response_quantiles == {0.5: 0.3906, 0.8: 1.0, 0.9: 1.0, 0.99: 1.0, 1.0: 1.0}
    config = ROOT / "configs/llama3-8b-2x8.yaml"

    def mean(limit: int) -> float:
        return response_lengths(load_config(config, [f"rollout.max_response_tokens={limit}"]), fitted).mean

    assert mean(1024) == pytest.approx(496, rel=1e-3)
    assert mean(512) < 0.9 * 496, "what is longer than 512 is cut there"
    assert 1.05 * 496 < mean(2048) < 1.5 * 496, "four of five ended by themselves, and would do so again"


def test_memory_is_fitted_by_phase_where_cards_told_theirs(tmp_path: Path) -> None:
    told = {"memory/gpu_generate_gib": 60.0, "memory/gpu_score_gib": 50.0, "memory/gpu_update_gib": 75.5}
    run = finished_run(tmp_path / "run", [{**step(1), **told}, {**step(1), **told, "memory/gpu_score_gib": 52.0}])
    planned = layout(load_config(run / "config.yaml"), calibrated(run))

    def fullest(*phases: str) -> float:
        return max(sum(load.phases[phase].values()) for load in planned.gpus for phase in phases) / GIB

    assert fullest("generate") == pytest.approx(60, abs=0.01)
    assert fullest("score") == pytest.approx(52, abs=0.01)
    assert fullest("train actor", "train critic") == pytest.approx(75.5, abs=0.01)
    assert calibrated(finished_run(tmp_path / "cpu", [step(1)])).beside_gib == BesideCounted()


def test_streamed_scores_are_fitted_as_well(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", [step(1)] * 3)
    config = load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["rollout.stream_samples=8", "rollout.engine.sleep=0"])
    (run / "config.yaml").write_text(dump_config(config))
    planned = layout(config, calibrated(run))
    assert planned.step.phases["score"] == pytest.approx(30, rel=1e-3)


def test_a_fitted_file_predicts_other_settings(tmp_path: Path) -> None:
    fitted = calibrated(finished_run(tmp_path / "run", [step(1)] * 3))
    twice = layout(load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["ppo.epochs=2"]), fitted)
    assert twice.step.phases["update"] == pytest.approx(400, rel=1e-3)
    assert twice.step.phases["generate"] == pytest.approx(50, rel=1e-3)


@pytest.mark.parametrize(
    "steps",
    [
        *([], [{"response/length_mean": 3.0}], [{**step(1), "time/push_s": None}], [1], [None], [[]]),
        *([{**step(1), "time/push_s": value}] for value in (-1.0, 1e300, "1", float("nan"), float("inf"), [])),
        [{**step(1), "response/length_mean": -1}],
    ],
)
def test_a_run_without_trained_steps_is_refused(steps: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no step in which the actor was trained"):
        calibrated(finished_run(tmp_path / "run", steps))


def test_a_run_that_sampled_more_than_once_a_step_is_refused(tmp_path: Path) -> None:
    sampled = [{**step(1), "sampling/rounds": rounds} for rounds in (1.0, 3.0, 2.0)]
    with pytest.raises(ConfigError, match=r"up to 3 times in a step.*ppo\.dynamic_sampling=null"):
        calibrated(finished_run(tmp_path / "run", sampled))
    assert calibrated(finished_run(tmp_path / "once", sampled[:1])) == calibrated(
        finished_run(tmp_path / "plain", [step(1)])
    )


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read.*name the run_dir of a run"):
        calibrated(tmp_path)


@pytest.mark.parametrize("text", ["x\n", "[" * 100_000])
def test_metrics_that_are_no_json_are_refused(tmp_path: Path, text: str) -> None:
    (finished_run(tmp_path / "run", []) / "metrics.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read.*name the run_dir of a run"):
        calibrated(tmp_path / "run")


def test_odd_lengths_and_memory_beside_sound_times_count_as_not_measured(tmp_path: Path) -> None:
    plain = calibrated(finished_run(tmp_path / "plain", [step(1)] * 2))
    odd = {**step(1), "prompt/length_mean": -3, "response/length_p50": "x", "memory/gpu_update_gib": -1}
    assert calibrated(finished_run(tmp_path / "odd", [odd] * 2)) == plain


def test_factors_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (finished_run(tmp_path / "run", [step(1)] * 2) / "efficiency.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"efficiency\.yaml cannot be written: Is a directory"):
        calibrated(tmp_path / "run")


def test_the_command_takes_one_source_of_factors(tmp_path: Path) -> None:
    run, file = finished_run(tmp_path / "run", [step(1)] * 2), str(ROOT / "configs/llama3-8b-2x8.yaml")
    fitted = CliRunner().invoke(cli.app, ["plan", file, "--calibrate", str(run)])
    assert fitted.exit_code == 0 and "responses of 512 tokens): 284" in fitted.output
    again = CliRunner().invoke(cli.app, ["plan", file, "--efficiency", str(run / "efficiency.yaml")])
    assert again.stdout == fitted.stdout and "--efficiency" in fitted.stderr
    both = ["plan", file, "--calibrate", str(run), "--efficiency", str(run / "efficiency.yaml")]
    assert CliRunner().invoke(cli.app, both).exit_code == 2
