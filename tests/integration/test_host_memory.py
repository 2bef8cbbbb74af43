"""Sixty steps of a real model: the host memory that a run holds does not grow with the steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.smoke.inputs import write

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sixty_steps_of_a_real_model_hold_no_more_memory_than_fifteen(tmp_path: Path) -> None:
    """`configs/smoke.yaml` with the judge itself as the reward, and fewer responses and optimizer steps a step."""
    write(tmp_path)
    model = {"path": str(tmp_path / "smollm2"), "gguf_file": MODEL}
    judge = {"type": "function", "path": "configs/smoke/vader.py"}
    changes = {
        "run_dir": str(tmp_path / "run"),
        "model_cache": str(tmp_path / "models"),
        "prompts.train.path": str(tmp_path / "smoke/train.jsonl"),
        "prompts.heldout.path": str(tmp_path / "smoke/heldout.jsonl"),
        "actor.model": json.dumps(model),
        "critic.model": json.dumps({**model, "layers": 3}),
        "reward": json.dumps(judge),
        "evaluation.prompts": 16,
        "rollout.prompts_per_step": 16,
        "rollout.stream_samples": 8,
        "ppo.epochs": 1,
        "ppo.mini_batches": 1,
        "steps": STEPS,
    }
    words = [sys.executable, "-m", "orchestrator", "train", "configs/smoke.yaml"]
    done = subprocess.run(
        words + [f"{key}={value}" for key, value in changes.items()],
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        text=True,
        capture_output=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    peaks = [line["memory/host_peak_gib"] for line in lines]
    print("most host memory (GiB) after every 15 steps:", peaks[14::15])
    assert len(peaks) == STEPS
    assert peaks[-1] < peaks[14] + 1.0  # 9.01 became 9.49, as more steps have longer samples; it grew 0.5 a step before
