"""Milliseconds of writing all samples of a step: what the step waits for, and what the thread takes meanwhile.

The texts are random words, of which nothing is repeated but prompts; every number is random.

    .venv/bin/python -m tests.benchmarks.samples_written [--rows 48 512 1024] [--tokens 40 1024 4096]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from orchestrator.config.report import SampleFilesConfig, TokenColumn
from orchestrator.report.file_writer import FileWriter
from orchestrator.run.sample_files import StepSamples, write_samples
from roles.batch import Rollouts, Scored

PROMPT = 64
"""Tokens of each prompt."""
KEPT = {"default": SampleFilesConfig(), "all": SampleFilesConfig(token_columns=list(get_args(TokenColumn)))}
"""What is kept of each sample → the configuration."""
TRIES = 5
"""Of which the median is shown."""


def a_step(rows: int, tokens: int) -> StepSamples:
    """Samples of as many responses of that length."""
    width, draw = PROMPT + tokens, random.Random(0)
    mask = (torch.arange(width) >= PROMPT).expand(rows, width).contiguous()
    numbers = torch.randn(rows, width) * mask
    rollouts = Rollouts(
        token_ids=torch.randint(0, 32_000, (rows, width)),
        lengths=torch.full((rows,), width),
        response_mask=mask,
        rollout_logprobs=numbers,
        turn_rewards=torch.zeros(rows, width),
        finished=torch.ones(rows, dtype=torch.bool),
        versions=torch.zeros(rows, dtype=torch.int64),
        prompts=["tell me about the red river"] * rows,
        responses=[" ".join(draw.choices(WORDS, k=tokens)) for _ in range(rows)],
        columns={},
        counted=[{}] * rows,
    )
    scored = Scored(rollouts, numbers, numbers, numbers, numbers[:, -1].contiguous(), torch.zeros(rows), [{}] * rows)
    columns = dict.fromkeys((name for name in get_args(TokenColumn) if name != "token_ids"), numbers)
    every = range(rows)
    return StepSamples(1, scored, every, every, set(every), {}, environment=False, named={}, per_token=columns)


WORDS = ["".join(random.Random(n).choices("abcdefghijklmnopqrstuvwxyz", k=2 + n % 9)) for n in range(8000)]


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def waited(step: StepSamples, path: Path, write: Callable[[Path], None]) -> float:
    """Milliseconds for which the step waits."""
    writer = FileWriter(600.0)
    took = milliseconds(lambda: step.line) + milliseconds(partial(writer.put, path, write))
    writer.close()
    return took


def main() -> None:
    """Measure and print a line for each size and what is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[48, 512, 1024])
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 1024, 4096])
    options = parser.parse_args()
    print("rows tokens kept waits_ms thread_ms mib", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.parquet"
        for rows, tokens in zip(options.rows, options.tokens, strict=True):
            step = a_step(rows, tokens)
            for name, kept in KEPT.items():
                write = partial(write_samples, step, kept)
                write(path)  # imports what it needs
                thread = median(milliseconds(partial(write, path)) for _ in range(TRIES))
                waits = median(waited(step, path, write) for _ in range(TRIES))
                print(rows, tokens, name, f"{waits:.2f} {thread:.0f} {path.stat().st_size / 2**20:.2f}", flush=True)


if __name__ == "__main__":
    main()
