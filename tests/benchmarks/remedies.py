"""What does each remedy against over-optimisation change? `make remedies`

`configs/overoptimise.yaml` as it is, with a KL penalty, with the worst of three reward models, and with a reward
model that is retrained; each with as many seeds (of the reward model and of the policy) as asked. Ten minutes a run.
What came of each is added to `remedies.jsonl`, a line a run, and is not measured again; a run that was cut off is
resumed. From all lines: where the gold score was highest, where it ended, and where `evaluation.stop` would have
ended it.

    .venv/bin/python -m tests.benchmarks.remedies [--seeds 5] [--only NAME …] [--root runs/remedies] [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.config.reward_training import QUALITY
from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.report.run_files import EVALUATION_FILE, read_lines
from orchestrator.run.checkpoint import Checkpoints

CONFIG = "configs/overoptimise.yaml"
PATIENCE = 2
"""Evaluations without a higher gold score after which `evaluation.stop` ends a run."""
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Runs → half of a 95 % interval, in standard errors of their mean (Student's t)."""
JUDGE = "{type: function, path: configs/smoke/vader.py, name: score_of_fresh_words}"
MEMBERS = 3
RESULTS = Path(__file__).with_suffix(".jsonl")


@dataclass(frozen=True, slots=True)
class Remedy:
    """How a run differs from the one without any."""

    says: str
    overrides: tuple[str, ...] = ()
    members: int = 1
    """Reward models, whose lowest score counts."""


REMEDIES = {
    "none": Remedy("none"),
    "kl": Remedy("KL penalty of 0.05", ("ppo.kl.controller.coefficient=0.05",)),
    "worst": Remedy(f"the worst of {MEMBERS} reward models", members=MEMBERS),
    "retrained": Remedy(
        "reward model retrained every 4 steps",
        (
            f"retraining={{every: 4, judge: {JUDGE}, prompts: 40, responses_per_prompt: 3, epochs: 4, "
            "groups_per_step: 8, freeze_backbone: true, optimizer: {learning_rate: 3.0e-2}, critic_steps: 0}",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training and the reward models that it needs."""

    root: Path
    name: str
    seed: int

    @property
    def remedy(self) -> Remedy:
        return REMEDIES[self.name]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.root / f"{self.name}-{self.seed}"

    @property
    def models(self) -> list[Path]:
        """Folders of the reward models."""
        folder = self.root / f"reward-{self.seed}-{self.remedy.members}"
        members = range(1, self.remedy.members + 1)
        return [folder] if self.remedy.members == 1 else [folder / f"member-{member}" for member in members]

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of `tetrarch`: reward models that are not there yet, then the training. What was cut off before
        anything of it could be resumed is removed."""
        first = self.models[0]
        output = first if self.remedy.members == 1 else first.parent
        reward = ["reward", CONFIG, f"seed={self.seed}", f"reward_training.output={output}"]
        train = ["train", CONFIG, f"seed={self.seed}", f"run_dir={self.folder}", *self.remedy.overrides]
        if self.remedy.members == 1:
            train.append(f"reward.model.path={first}")
        else:
            reward.append(f"reward_training.ensemble={{members: {self.remedy.members}}}")
            members = ", ".join(f"m{i}: {{type: model, model: {{path: {it}}}}}" for i, it in enumerate(self.models))
            train.append(f"reward={{type: ensemble, members: {{{members}}}, combine: {{type: worst}}}}")
        if Checkpoints(self.folder, keep=1).newest():
            train.append("--resume")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        if all((model / QUALITY).exists() for model in self.models):
            return [train]
        for folder in (output, Path(f"{output}-run")):
            shutil.rmtree(folder, ignore_errors=True)
        return [reward, train]

    def evaluations(self) -> list[EvaluationResult]:
        """As far as the run has come."""
        file = self.folder / EVALUATION_FILE
        return [EvaluationResult.from_json(line) for line in read_lines(file)] if file.exists() else []

    @property
    def whole(self) -> bool:
        """Whether the last evaluation is there."""
        return any(result.label == "after" for result in self.evaluations())


@dataclass(frozen=True, slots=True)
class Outcome:
    """Gold scores of one run."""

    best: float
    best_step: int
    best_kl: float
    """Nats a response, at the step of the best gold score."""
    last: float
    stopped: float
    """At the step where `evaluation.stop` ends the run."""
    stopped_step: int

    @classmethod
    def of(cls, evaluations: Sequence[EvaluationResult]) -> Outcome:
        """Of a whole run with a judge."""
        gold = [result.score for result in evaluations]
        best = max(range(len(gold)), key=gold.__getitem__)
        highest = stopped = 0
        for place, score in enumerate(gold):
            stopped = place
            if score > gold[highest]:
                highest = place
            if place - highest == PATIENCE:
                break
        steps = [result.step for result in evaluations]
        return cls(gold[best], steps[best], evaluations[best].kl.mean, gold[-1], gold[highest], steps[stopped])


Results = dict[tuple[str, int], Outcome]
"""Remedy and seed → what came of it."""


def results_in(file: Path) -> Results:
    """What is recorded."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return {(row.pop("remedy"), row.pop("seed")): Outcome(**row) for row in rows}


def record(file: Path, run: Run, outcome: Outcome) -> None:
    """Add it, rounded to what its standard error of some 0.02 leaves."""
    numbers = {name: round(value, 3) for name, value in asdict(outcome).items()}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"remedy": run.name, "seed": run.seed, **numbers}) + "\n")


def table(results: Results) -> str:
    """Markdown."""
    rows = ["| remedy | seeds | highest gold score | at step | KL there, nats | gold score at the end | models that "]
    rows[0] += f"`evaluation.stop` (patience {PATIENCE}) leaves | ended at step |"
    rows.append("|---|---|---|---|---|---|---|---|")
    for name, remedy in REMEDIES.items():
        done = [outcome for (its, _), outcome in results.items() if its == name]
        if done:
            columns = zip(
                *((o.best, o.best_step, o.best_kl, o.last, o.stopped, o.stopped_step) for o in done), strict=True
            )
            shown = [interval(list(column), digits) for column, digits in zip(columns, (2, 0, 0, 2, 2, 0), strict=True)]
            rows.append(f"| {remedy.says} | {len(done)} | {' | '.join(shown)} |")
    return "\n".join(rows)


def interval(values: list[float], digits: int) -> str:
    """Mean and half of its 95 % interval; the value alone if it is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--only", nargs="*", choices=sorted(REMEDIES), default=list(REMEDIES))
    parser.add_argument("--root", type=Path, default=Path("runs/remedies"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = results_in(arguments.results)
    for run in [Run(arguments.root, name, seed) for seed in range(1, arguments.seeds + 1) for name in arguments.only]:
        if (run.name, run.seed) in results:
            continue
        for command in [] if run.whole else run.commands:
            print("tetrarch", *command, flush=True)
            subprocess.run([sys.executable, "-m", "orchestrator", *command], check=True)
        results[run.name, run.seed] = Outcome.of(run.evaluations())
        record(arguments.results, run, results[run.name, run.seed])
        print(table(results), flush=True)
    print(table(results), flush=True)


if __name__ == "__main__":
    main()
