"""Runs of the guide "the reward does not rise": each really fires the rule that it is shown for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.illness.illnesses import ILLNESSES, INPUTS, IllnessRun
from tests.readmes import ROOT

QUICK = ["high-rate", "poor-critic", "truncated"]
"""They fire within three steps."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where relative paths lead to this checkout, except for `runs/`; with what the runs read."""
    home = tmp_path_factory.mktemp("home")
    for name in ("orchestrator", "roles", "cluster", "configs"):
        (home / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, INPUTS, "runs/inputs/illness"], cwd=home, check=True, timeout=120)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_an_illness_fires_its_rule(home: Path, name: str) -> None:
    words = [*IllnessRun(name).arguments, "steps=3", "evaluation.prompts=4", "report.html=false"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=home, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (home / f"runs/illness/{name}/alerts.jsonl").read_text().splitlines()
    assert ILLNESSES[name].alerts[0] in {json.loads(line)["rule"] for line in lines}
    assert "configs/illness/README.md#" in done.stdout
