"""`tetrarch plan --calibrate`: what was measured is what is predicted, and a run without steps is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.calibration import calibrated
from orchestrator.efficiency import load_efficiency
from orchestrator.errors import ConfigError
from orchestrator.loading import dump_config, load_config
from orchestrator.planning import layout

ROOT = Path(__file__).resolve().parents[3]


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


def test_a_fitted_file_predicts_other_settings(tmp_path: Path) -> None:
    fitted = calibrated(finished_run(tmp_path / "run", [step(1)] * 3))
    twice = layout(load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["ppo.epochs=2"]), fitted)
    assert twice.step.phases["update"] == pytest.approx(400, rel=1e-3)
    assert twice.step.phases["generate"] == pytest.approx(50, rel=1e-3)


@pytest.mark.parametrize("steps", [[], [{"response/length_mean": 3.0}]])
def test_a_run_without_trained_steps_is_refused(steps: list[dict[str, float]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no step in which the actor was trained"):
        calibrated(finished_run(tmp_path / "run", steps))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        calibrated(tmp_path)
