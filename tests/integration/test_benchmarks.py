"""`make bench` in small on the real engines; every benchmark on stand-ins: tests/unit/test_benchmarks.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_of_a_ppo_step_runs() -> None:
    """A minute, of which the start takes most."""
    command = [sys.executable, "-m", "tests.benchmarks.ppo_step", "--only", "float32/4/1", "--steps", "2"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, row = done.stdout.splitlines()
    case, step_s, floor_s, samples_per_s, *phases = row.split()
    assert case == "float32/4/1" and float(step_s) > float(floor_s) > 0 and float(samples_per_s) > 0
    assert {"generate", "score", "update", "push"} <= set(phases)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_in_small(tmp_path: Path) -> None:
    """Two kills in sixteen steps; the processes are too young to be flat."""
    subprocess.run([sys.executable, "configs/tiny/inputs.py"], cwd=ROOT, check=True, timeout=100)
    words = ["--steps", "16", "--every", "8", "--warm-up", "0", "--windows", "2", "--folder", str(tmp_path / "soak")]
    command = [sys.executable, "-m", "tests.benchmarks.soak", *words]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=580)
    assert "the runs are the same, bit for bit" in done.stdout, done.stdout + done.stderr
    rows = {line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")}
    ranks = {f"{role}-{rank}" for role in ("actor", "critic", "reference", "reward", "rollout") for rank in (0, 1)}
    assert ranks < rows and any(row.startswith("raylet") for row in rows), rows
