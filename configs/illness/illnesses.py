"""The illnesses that `configs/illness/README.md` shows: what each changes in `healthy.yaml`, and what then tells.

`.venv/bin/python configs/illness/illnesses.py [NAME …]` trains the runs that are not there yet, all or the named ones,
in `runs/illness`; a run takes about a minute.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.report.run_files import ALERTS_FILE, EVALUATION_FILE, METRICS_FILE, read_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIG, INPUTS = "configs/illness/healthy.yaml", "configs/illness/inputs.py"
RUNS = ROOT / "runs" / "illness"
GOLD_SCORE = "gold score"
"""In place of a metric: the mean score by the judge in the evaluations."""


@dataclass(frozen=True, slots=True)
class Illness:
    """What makes the healthy run ill."""

    overrides: tuple[str, ...]
    alerts: tuple[str, ...]
    """Rules that fire; the first one is the one to go by. The others follow from it."""
    shown: tuple[str, str]
    """Metrics of the picture. A rule's limit is drawn if it watches the metric."""


ILLNESSES = {
    "tight-leash": Illness(("ppo.kl.controller.coefficient=5",), (), ("score/mean", "objective/kl_per_token")),
    "no-leash": Illness(
        ("ppo.kl.controller.coefficient=0", "actor.optimizer.learning_rate=2e-3"),
        ("kl",),
        ("score/mean", "objective/kl_per_token"),
    ),
    "high-rate": Illness(
        ("actor.optimizer.learning_rate=0.05",), ("policy_update",), ("score/mean", "policy/approx_kl")
    ),
    "low-rate": Illness(("actor.optimizer.learning_rate=1e-6",), (), ("score/mean", "policy/approx_kl")),
    "poor-critic": Illness(
        ("critic={model: {path: runs/inputs/illness/critic}, optimizer: {learning_rate: 1e-6}}",),
        ("explained_variance",),
        ("score/mean", "value/explained_variance"),
    ),
    "hacked": Illness(
        ("reward.name=counted", "ppo.kl.controller.coefficient=0", "actor.optimizer.learning_rate=2e-3"),
        ("gold", "kl", "repeated_text"),
        ("score/mean", GOLD_SCORE),
    ),
    "truncated": Illness(
        ("rollout.max_response_tokens=4", "ppo.truncated={type: penalty, score: -1}"),
        ("truncated", "explained_variance"),
        ("score/mean", "response/truncated_fraction"),
    ),
    "stale": Illness(("ppo.epochs=16", "ppo.mini_batches=4"), (), ("policy/clip_fraction", "policy/approx_kl")),
    "no-spread": Illness(("reward.name=impossible",), ("spread",), ("score/mean", "score/flat_groups")),
    "saturated": Illness(
        ("reward.name=easy", "ppo.kl.controller.coefficient=0.02"),
        ("spread", "explained_variance"),
        ("score/mean", "score/flat_groups"),
    ),
}
"""Name of the run's folder → illness."""


@dataclass(frozen=True, slots=True)
class IllnessRun:
    """What a run has left: of an illness, or `healthy`."""

    name: str

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def arguments(self) -> list[str]:
        """Of `tetrarch`."""
        if self.name == "healthy":
            return ["train", CONFIG]
        return ["train", CONFIG, f"run_dir=runs/illness/{self.name}", *ILLNESSES[self.name].overrides]

    def train(self) -> None:
        """Run it, unless it has been run to its end."""
        if any(result.label == "after" for result in self.evaluations()):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        print("tetrarch", *self.arguments, flush=True)
        subprocess.run([sys.executable, "-m", "orchestrator", *self.arguments], cwd=ROOT, check=True)

    def evaluations(self) -> list[EvaluationResult]:
        """As far as the run has come."""
        return [EvaluationResult.from_json(line) for line in read_lines(self.folder / EVALUATION_FILE)]

    def alerts(self) -> dict[str, int]:
        """Rule that has fired → the step in which it did."""
        return {line["rule"]: line["step"] for line in read_lines(self.folder / ALERTS_FILE)}

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, or of the gold score."""
        if metric == GOLD_SCORE:
            return [(result.step, result.gold.mean) for result in self.evaluations() if result.gold]
        lines = read_lines(self.folder / METRICS_FILE)
        return [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]


def main() -> None:
    if not (ROOT / "runs/inputs/illness/policy").is_dir():
        subprocess.run([sys.executable, INPUTS], cwd=ROOT, check=True)
    for name in sys.argv[1:] or ["healthy", *ILLNESSES]:
        run = IllnessRun(name)
        run.train()
        print(name, "alerts:", ", ".join(f"{rule} (step {step})" for rule, step in run.alerts().items()) or "none")


if __name__ == "__main__":
    main()
