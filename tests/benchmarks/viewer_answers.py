"""CPU milliseconds in which the viewer answers its page, from runs with many samples: all in one step, and in many.

Asked over HTTP without a network, all threads together. `first`: the first time, when files are read; `again`: the
median of the next five.

    .venv/bin/python -m tests.benchmarks.viewer_answers [--samples 100000] [--steps 1 200] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

from starlette.testclient import TestClient

from orchestrator.config.report import SampleFilesConfig, TokenColumn
from orchestrator.report.run_files import LEDGER_FILE, METRICS_FILE, RunState, append_line, samples_of, write_state
from orchestrator.run.sample_files import StepSamples, write_samples
from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.viewer_app import viewer_app
from tests.benchmarks.samples_written import a_step

ALL = SampleFilesConfig(token_columns=list(get_args(TokenColumn)))
TRIES = 5


def a_run(folder: Path, samples: int, steps: int, tokens: int) -> Path:
    """A run with as many samples, in steps of one size; each prompt is drawn once in a step."""
    folder.mkdir()
    rows = samples // steps
    step = a_step(rows, tokens)
    rollouts = replace(
        step.scored.rollouts, prompts=[f"tell me about river {row} and its ships" for row in range(rows)]
    )
    scored = replace(step.scored, rollouts=rollouts)
    for number in range(1, steps + 1):
        whole: StepSamples = replace(step, step=number, scored=scored)
        write_samples(whole, ALL, samples_of(folder, number))
        append_line(folder / LEDGER_FILE, {"step": number, **asdict(whole.line)})
        append_line(folder / METRICS_FILE, {"step": number, "score/mean": 0.5, "objective/kl": 0.1})
    write_state(folder, RunState(folder.name, steps, "done"))
    return folder


def questions(run: str, step: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the page asks → path and parameters."""
    here = {"run": run, "at": str(step)}
    return {
        "the run and its steps": ("run", {"run": run}),
        "the first page": ("samples", here),
        "sorted by score": ("samples", {**here, "sort": "score", "descending": True}),
        "filtered by score and length": ("samples", {**here, "where": ["score>0.5", "length>10"]}),
        "searched for a word": ("samples", {**here, "search": "ab"}),
        "searched, filtered, sorted, last page": (
            *("samples",),
            {**here, "search": "ships", "where": "finished=true", "sort": "kl", "offset": 90_000},
        ),
        "searched in all steps, for two seconds": ("search", {"run": run, "search": "nowhere"}),
        "one sample with its tokens": ("sample", {**here, "row": 1}),
        "the same prompt in all steps": ("same-prompt", {**here, "row": 1}),
        "paired with itself": ("pairs", {**here, "other": run, "other_at": str(step), "sort": "difference"}),
        "the charts": ("charts", {"run": run}),
    }


def cpu_ms(work: Callable[[], object]) -> float:
    """Of one call, in all threads of this process: other work on the machine does not count."""
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


def asked(client: TestClient, path: str, parameters: dict[str, Any]) -> Callable[[], Any]:
    def ask() -> None:
        answer = client.get(f"/api/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        json.loads(answer.text)

    return ask


def main() -> None:
    """Measure and print a line for each question."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 200])
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    print("steps first_ms again_ms question", flush=True)
    for steps in options.steps:
        with tempfile.TemporaryDirectory() as folder:
            run = a_run(Path(folder) / "run", options.samples, steps, options.tokens)
            client = TestClient(viewer_app(Shelf([run])), base_url="http://127.0.0.1")
            for name, (path, parameters) in questions(str(run), steps).items():
                ask = asked(client, path, parameters)
                first = cpu_ms(ask)
                again = median(cpu_ms(ask) for _ in range(TRIES))
                print(steps, f"{first:.0f} {again:.0f}", name, flush=True)


if __name__ == "__main__":
    main()
