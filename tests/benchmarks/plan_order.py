"""Does `tetrarch plan` order layouts rightly? Random variants of a configuration, predicted and then run.

The first variant is the file itself; the plan is calibrated on it alone (`tetrarch plan --calibrate`), and predicts all
others. Printed: seconds per step, predicted and measured (median of the steps after the first), by phase too; the
errors' median and Spearman's rank correlation. Nothing else may run beside it. The file's inputs must be there.

    .venv/bin/python configs/tiny/inputs.py
    .venv/bin/python tests/benchmarks/plan_order.py configs/tiny.yaml [KEY=VALUE ...] [--variants 20] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.loading import load_config
from orchestrator.planning.calibration import calibrated
from orchestrator.planning.layout_planner import layout
from orchestrator.report.run_files import METRICS_FILE

RANKS, EPOCHS, MICRO_BATCHES = (1, 2), (1, 2, 4), (256, 512, 2048)
RUN_S = 900.0


def variant(choose: random.Random, prompts: int, response: int) -> list[str]:
    """Overrides of one random variant.

    Args:
        prompts: prompts per step of the file.
        response: its longest response, in tokens.
    """
    rows = prompts * choose.choice((1, 2))
    said = [
        f"rollout.prompts_per_step={rows}",
        f"rollout.max_response_tokens={choose.choice((response // 2, response, 2 * response))}",
        f"rollout.stream_samples={choose.choice((0, rows // 2))}",
        f"ppo.epochs={choose.choice(EPOCHS)}",
        f"placement.rollout.ranks={choose.choice(RANKS)}",
    ]
    for role in ("actor", "critic"):
        said += [
            f"placement.{role}.ranks={choose.choice(RANKS)}",
            f"{role}.micro_batch_tokens={choose.choice(MICRO_BATCHES)}",
        ]
    if choose.random() < 0.3:
        said.append("actor.lora={rank: 8}")
    return said


def run(file: str, overrides: Sequence[str]) -> None:
    """One training run. CalledProcessError, with its output above, if it fails."""
    command = [sys.executable, "-m", "orchestrator", "train", file, *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    if ended.returncode:
        print(ended.stdout[-2000:], ended.stderr[-2000:], file=sys.stderr)
        ended.check_returncode()


def measured(run_dir: Path, phase: str = "step") -> float:
    """Median seconds of the steps after the first, or of a phase of them."""
    rows = [json.loads(line) for line in (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    return statistics.median(row[f"time/{phase}_s"] for row in rows[1:])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 for the same order, -1 for the opposite one."""

    def ranks(values: Sequence[float]) -> list[int]:
        order = sorted(values)
        return [order.index(value) for value in values]

    return statistics.correlation(ranks(first), ranks(second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the configuration that is varied")
    parser.add_argument("overrides", nargs="*", help="of every run")
    parser.add_argument("--variants", type=int, default=20, help="2 or more")
    parser.add_argument("--steps", type=int, default=4, help="of each run, 2 or more; the first is not counted")
    parser.add_argument("--seed", type=int, default=1, help="which variants")
    said = parser.parse_args()
    choose, rollout = random.Random(said.seed), load_config(Path(said.file), said.overrides).rollout
    predictions, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        base = [*said.overrides, f"steps={said.steps}", "evaluation.prompts=2", "checkpoint.every=0"]
        run(said.file, [*base, f"run_dir={folder}/0"])
        fitted = calibrated(Path(folder, "0"))
        print(f"calibrated on {measured(Path(folder, '0')):.2f} s per step, factors {fitted.correction}")
        print(" predicted  measured   error  by phase: predicted/measured")
        for number in range(1, said.variants + 1):
            overrides = [*base, *variant(choose, rollout.prompts_per_step, rollout.max_response_tokens)]
            run_dir = Path(folder, str(number))
            step = layout(load_config(Path(said.file), overrides), fitted).step
            predictions.append(step.total)
            run(said.file, [*overrides, f"run_dir={run_dir}"])
            seconds.append(measured(run_dir))
            error = predictions[-1] / seconds[-1] - 1
            phases = (f"{phase} {s:.2f}/{measured(run_dir, phase):.2f}" for phase, s in step.phases.items())
            lead = f"{predictions[-1]:10.2f} {seconds[-1]:9.2f} {error:+7.0%}"
            print(f"{lead}  {', '.join(phases)}  {' '.join(overrides[len(base) :])}", flush=True)
    errors = [abs(predicted / real - 1) for predicted, real in zip(predictions, seconds, strict=True)]
    print(
        f"median error {statistics.median(errors):.0%}, worst {max(errors):.0%}, "
        f"rank correlation {rank_correlation(predictions, seconds):.2f}"
    )


if __name__ == "__main__":
    main()
