"""Benchmarks of EleutherAI's lm-evaluation-harness: a model folder flows in, the results of each task flow out.

lm-eval works in a process of its own, whose output is kept in `run_dir/logs/benchmarks.log`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.evaluation import BenchmarksConfig, EvaluationRun
from orchestrator.errors import TetrarchError
from orchestrator.stages.own_process import end_process, ends_with, last_lines

CLOSE_S = 10.0
"""Seconds in which lm-eval ends that was told to."""
SHOWN_LINES = 20
"""Last lines of the log in an error."""


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One metric of a task: `BenchmarkResult("arc_easy", "acc", "none", 0.61, 0.01)`."""

    task: str
    metric: str
    filter: str
    """What the answers went through before they were compared."""
    value: float
    standard_error: float | None

    def line(self) -> str:
        """For the terminal."""
        error = "" if self.standard_error is None else f" ±{self.standard_error:.3f}"
        form = "" if self.filter == "none" else f" ({self.filter})"
        return f"  {self.task} {self.metric}{form}: {self.value:.3f}{error}"


def run_benchmarks(config: EvaluationRun, model: Path) -> list[BenchmarkResult]:
    """The results of `evaluation.benchmarks`; none without that section. TetrarchError if lm-eval fails, or does not
    end in time."""
    benchmarks = config.evaluation.benchmarks
    if benchmarks is None:
        return []
    log = Path(config.run_dir) / "logs" / "benchmarks.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as out:
        words = [sys.executable, "-m", "lm_eval", *arguments(config, benchmarks, model), "--output_path", folder]
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(config.device),
            preexec_fn=ends_with(os.getpid()),
        )
        try:
            code = process.wait(benchmarks.limit_s)
        except subprocess.TimeoutExpired:
            raise TetrarchError(
                f"lm-eval has not ended in evaluation.benchmarks.limit_s={benchmarks.limit_s:g}; raise it, or name "
                f"fewer tasks or examples; the last lines of {log}:\n{last_lines(log, SHOWN_LINES)}"
            ) from None
        finally:
            if process.poll() is None:
                end_process(process, CLOSE_S)
        written = sorted(Path(folder).rglob("results_*.json"))
        if code or not written:
            said = last_lines(log, SHOWN_LINES)
            raise TetrarchError(f"lm-eval ended with exit code {code}; the last lines of {log}:\n{said}")
        return list(results_of(json.loads(written[-1].read_text(encoding="utf-8"))["results"]))


def arguments(config: EvaluationRun, benchmarks: BenchmarksConfig, model: Path) -> list[str]:
    """The words of lm-eval's command."""
    trusted = config.actor.model.trust_remote_code
    said = {"pretrained": str(model.resolve()), "dtype": config.dtype, "trust_remote_code": trusted}
    device = "cuda:0" if config.device == "cuda" else "cpu"
    return [
        *("run", "--model", "hf", "--model_args", json.dumps(said), "--device", device),
        *("--tasks", *benchmarks.tasks, "--batch_size", str(benchmarks.batch_size), "--seed", str(config.seed)),
        *(["--include_path", benchmarks.task_folder] if benchmarks.task_folder is not None else []),
        *(["--limit", str(benchmarks.examples)] if benchmarks.examples is not None else []),
        *(["--num_fewshot", str(benchmarks.few_shot)] if benchmarks.few_shot is not None else []),
        *(["--apply_chat_template"] if benchmarks.chat else []),
    ]


def results_of(found: Mapping[str, Mapping[str, Any]]) -> Iterator[BenchmarkResult]:
    """lm-eval's results: task → {"acc,none": 0.61, "acc_stderr,none": 0.01, …}."""
    for task, metrics in found.items():
        for name, value in metrics.items():
            metric, comma, form = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = metrics.get(f"{metric}_stderr,{form}")
                told = float(error) if isinstance(error, int | float) else None
                yield BenchmarkResult(task, metric, form, float(value), told)


def _environment(device: str) -> dict[str, str]:
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", **hidden}
