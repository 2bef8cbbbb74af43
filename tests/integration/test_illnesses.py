"""Runs of the guide "the reward does not rise": each fires the rule that it is shown for, or its metric shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.illness.illnesses import ILLNESSES, INPUTS, IllnessRun
from tests.readmes import ROOT

LATER = {"saturated": 10, "hacked": 25}
"""Steps of the runs whose rule needs more than three."""
UNNOTICED = {
    "tight-leash": ("objective/kl_per_token", -0.02, 0.02),
    "low-rate": ("policy/approx_kl", 0.0, 1e-6),
    "stale": ("policy/clip_fraction", 0.05, 1.0),
}
"""Illnesses of which no rule tells → a metric, and between which values it is in every step."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where relative paths lead to this checkout, except for `runs/`; with what the runs read."""
    home = tmp_path_factory.mktemp("home")
    for name in ("orchestrator", "roles", "cluster", "configs"):
        (home / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, INPUTS, "runs/inputs/illness"], cwd=home, check=True, timeout=120)
    return home


def trained(home: Path, name: str) -> tuple[Path, str]:
    """The folder of a short run of an illness, and what it has printed."""
    words = [*IllnessRun(name).arguments, f"steps={LATER.get(name, 3)}", "report.html=false"]
    words += [] if "gold" in ILLNESSES[name].alerts else ["evaluation.prompts=4", "evaluation.every=0"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=home, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / f"runs/illness/{name}", done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ILLNESSES} - {*UNNOTICED}))
def test_an_illness_fires_its_rule(home: Path, name: str) -> None:
    run, shown = trained(home, name)
    lines = (run / "alerts.jsonl").read_text().splitlines()
    assert ILLNESSES[name].alerts[0] in {json.loads(line)["rule"] for line in lines}
    assert "configs/illness/README.md#" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", UNNOTICED)
def test_an_illness_without_a_rule_is_seen_in_its_metric(home: Path, name: str) -> None:
    run, _ = trained(home, name)
    metric, low, high = UNNOTICED[name]
    values = [json.loads(line)[metric] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(values) == 3 and all(low <= value <= high for value in values), values
    assert not (run / "alerts.jsonl").exists() and ILLNESSES[name].alerts == ()
